"""Tool calls in a turn's text, whole or growing.

Hermes (Qwen2.5, Qwen3) is parsed here in plain Python: the result is vLLM's own (``tests/rollout/chat/test_tools.py``
compares the two on generated text), without importing vLLM into the trainer (seconds, 100 MB) and without the error
traceback it logs for every malformed call, which a policy in training makes by the thousand. Every other parser name
goes to vLLM (``vllm_parsers``). In a stream each piece is sent once and never taken back.
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


def partial_suffix(text: str, *words: str) -> int:
    """Length of the longest proper prefix of any of ``words`` that ``text`` ends with."""
    best = 0
    for word in words:
        for size in range(min(len(word) - 1, len(text)), best, -1):
            if text.endswith(word[:size]):
                best = size
                break
    return best


class ToolCallStream(Protocol):
    """Text behind the reasoning -> content and call deltas; ``finish`` gets the whole turn as it was parsed."""

    def feed(self, text: str) -> Iterator[Delta]: ...

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]: ...


class ToolCallParser(Protocol):
    """Splits a turn's text into (content, tool calls, invalid_format)."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]: ...

    def stream(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallStream: ...


class PlainStream:
    """No tools were offered: everything is content."""

    def feed(self, text: str) -> Iterator[Delta]:
        if text:
            yield Delta(content=text)

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        return iter(())
