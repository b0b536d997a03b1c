"""Hermes tool calls (Qwen2.5, Qwen3), whole or streamed.

In plain Python: the results are vLLM's own (``tests/rollout/chat/test_tools.py`` compares the two on generated text),
without importing vLLM into the trainer (seconds, 100 MB) and without the error traceback it logs for every malformed
call, of which a policy in training makes thousands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from .message import ParsedMessage, ToolCall
from .tools import Delta, ToolCallStream, parameters_of, partial_suffix

TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt])+)"\s*,\s*"arguments"\s*:\s*(?=\{)')


class HermesStream:
    """Hermes calls, ``arguments`` token by token.

    A call is streamed once its text has the form that the policy was shown, name first; any other form waits for the
    end of the turn, where the parser of whole turns decides. A call that breaks after its name was sent stays as it was
    sent: its arguments are not JSON.
    """

    def __init__(self) -> None:
        self._text = ""
        self._content_sent = 0
        self._at = -1  # where the text behind the open <tool_call> starts; -1: before the first call
        self._calls = 0
        self._arguments: _JsonObject | None = None
        self._waiting = False  # the open call has another form: leave the rest to finish()

    def feed(self, text: str) -> Iterator[Delta]:
        """Deltas that the next piece of text allows."""
        self._text += text
        if self._at < 0:
            start = self._text.find(TOOL_OPEN)
            end = start if start >= 0 else len(self._text) - partial_suffix(self._text, TOOL_OPEN)
            if end > self._content_sent:
                yield Delta(content=self._text[self._content_sent : end])
                self._content_sent = end
            if start < 0:
                return
            self._at = start + len(TOOL_OPEN)
        while not self._waiting:
            if self._arguments is None:
                head = _HEAD.match(self._text, self._at)
                if head is None:
                    self._waiting = TOOL_CLOSE in self._text[self._at :]
                    return
                yield Delta(call=self._calls, name=json.loads(f'"{head[1]}"'))
                self._arguments = _JsonObject(head.end())
                self._calls += 1
            piece = self._arguments.take(self._text)
            if piece:
                yield Delta(call=self._calls - 1, arguments=piece)
            if not self._arguments.closed:
                return
            close = self._text.find(TOOL_CLOSE, self._arguments.at)
            following = self._text.find(TOOL_OPEN, self._arguments.at)
            if close < 0 or following < 0:
                return
            self._at, self._arguments = following + len(TOOL_OPEN), None

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        """Calls that had another form; or, where nothing of a malformed call was sent, its text as content."""
        if parsed.tool_calls:
            for at, call in enumerate(parsed.tool_calls[self._calls :], self._calls):
                yield Delta(call=at, name=call.name)
                yield Delta(call=at, arguments=call.arguments)
        elif not self._calls and self._content_sent < len(self._text):
            yield Delta(content=self._text[self._content_sent :])


@dataclass
class _JsonObject:
    """Follows one JSON object through growing text; ``at`` is the next character to read."""

    at: int
    depth: int = 0
    in_string: bool = False
    escaped: bool = False
    closed: bool = False

    def take(self, text: str) -> str:
        """The characters of the object that are new."""
        start = self.at
        end = len(text) - partial_suffix(text[start:], TOOL_CLOSE)
        while self.at < end and not self.closed:
            char = text[self.at]
            if text.startswith(TOOL_CLOSE, self.at):
                # The parser of whole turns ends a call here, whatever the JSON contains.
                self.closed = True
                break
            self.at += 1
            if self.escaped:
                self.escaped = False
            elif self.in_string:
                self.escaped, self.in_string = char == "\\", char != '"'
            elif char == '"':
                self.in_string = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                self.closed = self.depth == 0
        return text[start : self.at]


class HermesParser:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; drops text behind the first call, as vLLM does."""

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str | None, tuple[ToolCall, ...], bool]:
        """A turn's text as (content, tool calls, invalid_format)."""
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

    def stream(self, tools: Sequence[Mapping[str, Any]]) -> ToolCallStream:
        """A fresh incremental parser of one turn."""
        return HermesStream()

    def structural_tag(self, functions: Sequence[Mapping[str, Any]], *, once: bool) -> dict[str, Any]:
        """xgrammar's tag that allows only hermes calls, exactly one with ``once``."""
        tags = [
            {
                "type": "tag",
                "begin": f'{TOOL_OPEN}\n{{"name": {orjson.dumps(function["name"]).decode()}, "arguments": ',
                "content": {"type": "json_schema", "json_schema": parameters_of(function)},
                "end": f"}}\n{TOOL_CLOSE}",
            }
            for function in functions
        ]
        if once:
            # Not stop_after_first: xgrammar then accepts any text at all.
            body: dict[str, Any] = {"type": "or", "elements": tags}
        else:
            body = {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}
        return {"type": "structural_tag", "format": body}
