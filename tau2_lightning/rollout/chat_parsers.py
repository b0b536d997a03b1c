"""Text of a sampled turn -> reasoning, content and tool calls.

Hermes (Qwen2.5, Qwen3) is parsed here in plain Python: the result is vLLM's own (``tests/rollout/test_chat_parsers.py``
compares the two on generated text), without importing vLLM into the trainer (seconds, 100 MB) and without the error
traceback it logs for every malformed call, which a policy in training makes by the thousand. Every other parser name
goes to vLLM (``engine_parsers``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
HERMES = frozenset({"hermes", "qwen3_json"})
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


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


class ToolCallParser(Protocol):
    """Splits a turn's text into (content, tool calls, invalid_format)."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]: ...


class HermesParser:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; drops text behind the first call, as vLLM."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        start = text.find(TOOL_OPEN)
        if start < 0:
            return text, (), False
        calls: list[ToolCall] = []
        invalid = False
        for closed, unclosed in _TOOL_CALL.findall(text):
            try:
                call = json.loads(closed or unclosed)
            except (ValueError, RecursionError):
                return text, (), True
            if not isinstance(call, dict) or not isinstance(call.get("name"), str) or "arguments" not in call:
                return text, (), True
            # Clients call functions with **arguments: anything but an object is the policy's mistake.
            invalid |= not isinstance(call["arguments"], dict)
            calls.append(ToolCall(call["name"], json.dumps(call["arguments"], ensure_ascii=False)))
        return text[:start] or None, tuple(calls), invalid


class PlainParser:
    """No tool calls: the text is the content."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        return text, (), False


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


def make_tool_parser(name: str | None, tokenizer: Any) -> ToolCallParser:
    """The parser called ``name``: ``hermes`` (and vLLM's alias ``qwen3_json``) here, others from vLLM.

    Raises ValueError when no parser has that name.
    """
    if name is None:
        return PlainParser()
    if name in HERMES:
        return HermesParser()
    from .engine_parsers import VLLMToolParser

    return VLLMToolParser(name, tokenizer)
