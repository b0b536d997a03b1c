"""The thoughts of a user's model: split off its answers, so that neither the agent nor the dialogue's end sees them."""

from __future__ import annotations

import re
from typing import Any, Literal

ReasoningParser = Literal["auto", "think"]

# Marks of thoughts in the text of known models: Qwen3, DeepSeek-R1, GLM; Magistral; and what models write when a
# prompt asks them to think.
_PAIRS = {
    "think": (("<think>", "</think>"),),
    "auto": (
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<thinking>", "</thinking>"),
        ("<reasoning>", "</reasoning>"),
        ("<thought>", "</thought>"),
    ),
}
#: The names of a separate field of thoughts: vLLM, SGLang and DeepSeek's own API, and vLLM's newer one.
_FIELDS = ("reasoning_content", "reasoning")


def split_thoughts(text: str, parser: ReasoningParser | None) -> tuple[str, str]:
    """(what is said, what is thought) in a model's answer.

    Thoughts are every marked block; everything before a closing mark that nothing opened, because the template of the
    prompt did; and everything after an opening mark that is never closed. With ``parser`` None all is said.
    """
    thoughts: list[str] = []
    for opening, closing in _PAIRS[parser] if parser is not None else ():
        text = _take_out(text, opening, closing, thoughts)
    return (text.strip() if thoughts else text), "\n".join(filter(None, map(str.strip, thoughts)))


def _take_out(text: str, opening: str, closing: str, thoughts: list[str]) -> str:
    first, flags = re.escape(opening), re.IGNORECASE
    last = re.escape(closing)
    # Blocks inside of blocks: the outer one ends at the last closing mark before the next block.
    block = re.compile(f"{first}((?:(?!{first}|{last}).)*){last}", flags | re.DOTALL)
    while found := block.search(text):
        thoughts.append(found.group(1))
        text = text[: found.start()] + text[found.end() :]
    before, *rest = re.split(last, text, flags=flags)
    if rest:
        thoughts.extend([before, *rest[:-1]])
        text = rest[-1]
    said, *open_ended = re.split(first, text, flags=flags)
    thoughts.extend(open_ended)
    return said


def thoughts_in_fields(answer: Any) -> str:
    """Thoughts that the server has put into a field of the answer's message; "" without one."""
    values = (getattr(answer, name, None) for name in _FIELDS)
    return next((value for value in values if isinstance(value, str) and value.strip()), "")
