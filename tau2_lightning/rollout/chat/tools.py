"""The interface of tool-call parsers: a turn's text, whole or growing, to content and calls.

In a stream each piece is sent once and never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .message import ParsedMessage, ToolCall


@dataclass(frozen=True)
class Delta:
    """A piece of a message. ``call`` numbers the tool call that ``name`` opens or ``arguments`` continue."""

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str = ""
    arguments: str = ""


class ToolCallStream(Protocol):
    """The text behind the reasoning -> content and call deltas, for one turn."""

    def feed(self, text: str) -> Iterator[Delta]:
        """Deltas that the next piece of text allows."""
        ...

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        """Deltas that are possible only at the end of the turn; ``parsed`` is the whole turn."""
        ...


class ToolCallParser(Protocol):
    """Reads the tool calls of one format."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        """A turn's text as (content, tool calls, invalid_format)."""
        ...

    def stream(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallStream:
        """A fresh incremental parser of one turn."""
        ...

    def structural_tag(self, functions: Sequence[Mapping[str, Any]], *, once: bool) -> Mapping[str, Any] | None:
        """The xgrammar structural tag that allows only calls of ``functions``, exactly one with ``once``.

        None where the format has none: forced calls are then sampled as a JSON list.
        """
        ...


class PlainStream:
    """No tools were offered: everything is content."""

    def feed(self, text: str) -> Iterator[Delta]:
        """The text as content."""
        if text:
            yield Delta(content=text)

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        """No deltas are left."""
        return iter(())


def partial_suffix(text: str, *words: str) -> int:
    """Length of the longest proper prefix of any of ``words`` that ``text`` ends with."""
    best = 0
    for word in words:
        for size in range(min(len(word) - 1, len(text)), best, -1):
            if text.endswith(word[:size]):
                best = size
                break
    return best


def parameters_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of a function's arguments; any object where none is given."""
    return function.get("parameters") or {"type": "object", "properties": {}}
