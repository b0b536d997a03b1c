"""The text of a turn as the policy would sample it: what the template writes after its generation prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .delta import DeltaRenderer
from .message import THINK_CLOSE, THINK_OPEN, Message, Tools, text_of
from .template import ChatFormatError, ChatTemplate

_THOUGHT = re.compile(rf"{THINK_OPEN}\s*(?:{THINK_CLOSE}\s*)?\Z")


def turn_text(
    template: ChatTemplate,
    delta: DeltaRenderer,
    before: Sequence[Message],
    reply: Message,
    new: Sequence[Message],
    tools: Tools,
    kwargs: Mapping[str, Any],
) -> str:
    """The text of ``reply`` after the prompt of ``before``, with the end-of-turn token that it has before ``new``.

    If the generation prompt opens a reasoning block and the template leaves the block out of history, the text closes
    it first. Raises ChatFormatError when the template cannot write the turn after its own prompt.
    """
    prompt = template.render(before, tools, True, kwargs)
    whole = template.render([*before, reply], tools, False, kwargs)
    body = whole[len(prompt) :] if whole.startswith(prompt) else _behind_thought(prompt, whole, reply)
    closing, end_of_turn = delta.closing(reply, new, kwargs)
    end = template.tail(reply, [], tools, False, kwargs)
    if end_of_turn and end.startswith(closing + end_of_turn):
        behind = end[len(closing + end_of_turn) :]
        if body.endswith(end_of_turn + behind):
            return body.removesuffix(behind)
    elif closing.startswith(end):  # the header of the next message ends the turn
        return body + closing[len(end) :] + end_of_turn
    raise ChatFormatError("the chat template ends an assistant's turn differently depending on its text")


def _behind_thought(prompt: str, whole: str, reply: Message) -> str:
    """The turn's text when the prompt ends with a reasoning block (open or empty) that ``whole`` writes differently."""
    header = _THOUGHT.sub("", prompt)
    if not whole.startswith(header):
        raise ChatFormatError("the chat template does not write an assistant's turn after its generation prompt")
    body = whole[len(header) :]
    if THINK_CLOSE in prompt[len(header) :]:
        return body
    if body.startswith(THINK_OPEN):
        return body.removeprefix(THINK_OPEN).lstrip("\n")
    thought = text_of(reply.get("reasoning_content")).strip("\n")
    return f"{thought}\n{THINK_CLOSE}\n\n{body}"
