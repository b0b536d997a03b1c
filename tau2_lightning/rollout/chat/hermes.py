"""Hermes tool calls (Qwen2.5, Qwen3).

In plain Python: the results are vLLM's own (``tests/rollout/chat/test_tools.py`` compares the two on generated text)
but for what the rules of `tools` refuse and for tags inside JSON strings, which end no call here. It needs no import of
vLLM in the trainer (seconds, 100 MB) and writes no traceback for every malformed call, of which a policy in training
makes thousands.
"""

from __future__ import annotations

from typing import Any

import orjson

from .json_calls import MalformedCall, read_call, skip_space
from .message import ToolCall
from .schemas import parameters_of
from .tools import FunctionTools, Read, read_attempts

TOOL_OPEN, TOOL_CLOSE = "<tool_call>", "</tool_call>"


class HermesParser:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; the last closing tag may be missing."""

    openings = (TOOL_OPEN,)

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format)."""
        return read_attempts(text, lambda at: text.find(TOOL_OPEN, at), lambda at: _read(text, at))

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> dict[str, Any]:
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


def _read(text: str, at: int) -> tuple[list[ToolCall], int]:
    call, at = read_call(text, skip_space(text, at + len(TOOL_OPEN)))
    at = skip_space(text, at)
    if at < len(text) and not text.startswith(TOOL_CLOSE, at):
        raise MalformedCall("text between a call and its closing tag")
    return [call], at + len(TOOL_CLOSE)
