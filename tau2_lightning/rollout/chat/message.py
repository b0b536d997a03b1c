"""What a sampled turn says: its reasoning, its content, its tool calls."""

from __future__ import annotations

from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ToolCall:
    """A call the policy made: the function's name and its arguments as a JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ParsedMessage:
    """A sampled turn as an OpenAI client sees it.

    ``invalid_format`` is True when the turn tried to call a tool and failed to: not JSON, no name, or arguments that
    are not an object. Its text is then in ``content``, unless the call itself could be read. ``text`` is everything
    that was sampled, without the end-of-turn token.
    """

    content: str | None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_format: bool = False
    text: str = ""


def split_reasoning(text: str, *, open_at_start: bool = False) -> tuple[str | None, str]:
    """Split ``<think>...</think>`` off the front of a turn: (reasoning or None, rest).

    ``open_at_start`` says that the prompt already opened the block. A block that is never closed is all reasoning;
    newlines around either part are dropped, as the templates that write them do.
    """
    before, closed, after = text.partition(THINK_CLOSE)
    if closed:
        head, opened, inside = before.partition(THINK_OPEN)
        reasoning = inside if opened else before
        return reasoning.strip("\n"), (head if opened else "").strip("\n") + after.lstrip("\n")
    if open_at_start:
        return text.strip("\n"), ""
    head, opened, inside = text.partition(THINK_OPEN)
    if opened and not head.strip():
        return inside.strip("\n"), ""
    return None, text
