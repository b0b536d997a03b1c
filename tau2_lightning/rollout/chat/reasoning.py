"""``<think>`` blocks at the front of a sampled turn."""

from __future__ import annotations

from .message import THINK_CLOSE, THINK_OPEN


def split_reasoning(text: str, *, open_at_start: bool = False) -> tuple[str | None, str]:
    """Split ``<think>...</think>`` off the front of a turn: (reasoning or None, rest).

    ``open_at_start``: the prompt already opened the block. A block that is never closed is all reasoning. Newlines
    around either part are dropped, as the templates that write them do.
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
