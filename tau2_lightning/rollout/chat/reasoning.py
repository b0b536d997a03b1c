"""The thoughts at the front of a sampled turn: the marks around them, and how they are split off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .message import THINK_CLOSE, THINK_OPEN


@dataclass(frozen=True)
class Marks:
    """The texts around a model's thoughts.

    A chat template that contains ``sign`` (the closing mark if ``sign`` is empty) uses these marks. ``headers``: texts
    that may precede the answer and belong neither to it nor to the thoughts.
    """

    opening: str
    closing: str
    sign: str = ""
    headers: tuple[str, ...] = ()

    def bare(self, answer: str) -> str:
        """``answer`` without a header."""
        found = next((header for header in self.headers if answer.startswith(header)), "")
        return answer[len(found) :]


THINK = Marks(THINK_OPEN, THINK_CLOSE)
_FINAL = "<|channel|>final<|message|>"
_ANALYSIS = "<|channel|>analysis<|message|>"
#: The keys are vLLM's names. Every other name is looked up among vLLM's parsers.
MARKS: dict[str, Marks] = {
    "think": THINK,
    "qwen3": THINK,
    "deepseek_r1": THINK,
    "openai_gptoss": Marks(_ANALYSIS, "<|end|>", _ANALYSIS, (f"<|start|>assistant{_FINAL}", _FINAL)),
    "gemma4": Marks("<|channel>thought\n", "<channel|>"),
    "mistral": Marks("[THINK]", "[/THINK]"),
    "seed_oss": Marks("<seed:think>", "</seed:think>"),
    "cohere_command3": Marks("<|START_THINKING|>", "<|END_THINKING|>", headers=("<|START_RESPONSE|>",)),
}


def marks_for(name: str | None, template: str, tokenizer: Any) -> Marks | None:
    """The marks called ``name``; ``auto`` finds those of the chat template, or else of the tokenizer's special tokens.

    Returns None if nothing is to be split off. Raises ValueError for a name that neither this project nor vLLM knows.
    """
    if name is None:
        return None
    if name != "auto":
        if name not in MARKS:
            from .vllm_parsers import reasoning_marks

            return Marks(*reasoning_marks(name, tokenizer, known=MARKS))
        return MARKS[name]
    for marks in MARKS.values():
        if (marks.sign or marks.closing) in template:
            return marks
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return next((marks for marks in MARKS.values() if {marks.opening, marks.closing} <= special), None)


def split_reasoning(text: str, *, open_at_start: bool = False, marks: Marks = THINK) -> tuple[str | None, str]:
    """Split the thoughts off the front of a turn: (reasoning or None, rest).

    ``open_at_start``: the prompt already opened the block. If the block is never closed, the whole turn is reasoning.
    Marks at any other place are ordinary text, for example in an argument of a call. Newlines around either part are
    dropped, because templates write them there.
    """
    head = text.lstrip()
    opened = head.startswith(marks.opening)
    if not opened and not open_at_start:
        return None, marks.bare(text)
    inside = head[len(marks.opening) :] if opened else text
    reasoning, _, rest = inside.partition(marks.closing)
    return reasoning.strip("\n"), marks.bare(rest.lstrip("\n"))
