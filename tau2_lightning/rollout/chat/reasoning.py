"""``<think>`` blocks at the front of a sampled turn."""

from __future__ import annotations

from .message import THINK_CLOSE, THINK_OPEN


def split_reasoning(text: str, *, open_at_start: bool = False) -> tuple[str | None, str]:
    """Split ``<think>...</think>`` off the front of a turn: (reasoning or None, rest).

    ``open_at_start``: the prompt already opened the block. A block that is never closed is all reasoning. Tags that
    stand anywhere else are text: in an argument of a call, for example. Newlines around either part are dropped, as the
    templates that write them do.
    """
    head = text.lstrip()
    opened = head.startswith(THINK_OPEN)
    if not opened and not open_at_start:
        return None, text
    inside = head[len(THINK_OPEN) :] if opened else text
    reasoning, _, rest = inside.partition(THINK_CLOSE)
    return reasoning.strip("\n"), rest.lstrip("\n")
