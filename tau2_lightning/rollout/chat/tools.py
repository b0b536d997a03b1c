"""The interface of tool-call parsers, and what holds for all of them, whole or streamed.

A turn that tries to call a tool and fails is malformed: its whole text is content, and it is flagged. It fails when one
of its calls cannot be read, has no name, or has arguments that are no JSON object. Text that is no attempt of a call is
never flagged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .json_calls import MalformedCall, checked_call
from .message import ParsedMessage, ToolCall

#: A turn's text as (content, tool calls, invalid_format).
Read = tuple[str | None, tuple[ToolCall, ...], bool]
FunctionTools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Delta:
    """A piece of a message: text, or the whole of tool call number ``call``."""

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    name: str = ""
    arguments: str = ""


class ToolCallParser(Protocol):
    """Reads the tool calls of one format."""

    @property
    def openings(self) -> tuple[str, ...]:
        """The texts that a call can begin with: a stream waits from the first of them on. ``""``: from the start."""
        ...

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format). ``content`` is the text before the first call; the
        whole text where no call was read."""
        ...

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> Mapping[str, Any] | None:
        """The xgrammar structural tag that allows only calls of ``functions``, exactly one with ``once``.

        None where the format has none: forced calls are then sampled as a JSON list.
        """
        ...


def read_attempts(text: str, find: Callable[[int], int], read: Callable[[int], tuple[list[ToolCall], int]]) -> Read:
    """A turn's text by the rule for malformed calls.

    ``find`` returns where the next attempt of a call begins, from a position on, or -1; ``read`` its calls and the
    position after them, or it raises MalformedCall. Text after the first call is dropped, as vLLM does.
    """
    start = at = find(0)
    if start < 0:
        return text, (), False
    calls: list[ToolCall] = []
    while at >= 0:
        try:
            found, end = read(at)
        except MalformedCall:
            return text, (), True
        calls += found
        at = find(end)
    return text[:start] or None, tuple(calls), False


def read_turn(parser: ToolCallParser, text: str, tools: FunctionTools) -> Read:
    """What ``parser`` reads in a turn, by the rule for malformed calls, whatever the parser itself lets through."""
    content, calls, invalid = parser.parse(text, tools)
    try:
        calls = tuple(checked_call(call) for call in calls)
    except MalformedCall:
        return text, (), True
    return content if calls else text, calls, invalid


class CallStream:
    """The text after the reasoning as deltas, for one turn: text as it comes, calls whole at the end.

    Whether a turn's calls can be read is known at its end only. So everything from the first of ``openings`` on waits
    for it, and a streamed answer equals the plain one. Without openings everything is content.
    """

    def __init__(self, openings: Sequence[str] = ()) -> None:
        self._openings = tuple(openings)
        self._text = ""
        self._sent = 0
        self._waiting = False

    def feed(self, text: str) -> Iterator[Delta]:
        """Deltas that the next piece of text allows."""
        if self._waiting:
            return
        looked = max(0, len(self._text) - max(map(len, self._openings), default=0))
        self._text += text
        found = [at for opening in self._openings if (at := self._text.find(opening, looked)) >= 0]
        self._waiting = bool(found)
        end = min(found, default=len(self._text) - partial_suffix(self._text, *self._openings))
        if end > self._sent:
            yield Delta(content=self._text[self._sent : end])
            self._sent = end

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        """Deltas that are possible only at the end of the turn; ``parsed`` is the whole turn."""
        content = parsed.content or ""
        if content.startswith(self._text[: self._sent]) and len(content) > self._sent:
            yield Delta(content=content[self._sent :])
        for at, call in enumerate(parsed.tool_calls):
            yield Delta(call=at, name=call.name, arguments=call.arguments)


def partial_suffix(text: str, *words: str) -> int:
    """Length of the longest proper prefix of any of ``words`` that ``text`` ends with."""
    best = 0
    for word in words:
        for size in range(min(len(word) - 1, len(text)), best, -1):
            if text.endswith(word[:size]):
                best = size
                break
    return best


def names_of(tools: FunctionTools) -> frozenset[str]:
    """The names of function tools."""
    return frozenset(tool["function"]["name"] for tool in tools)
