"""Mistral's tool calls, in both forms: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`` of the tokenizers up to
version 7, ``[TOOL_CALLS]name[ARGS]{...}`` of the later ones."""

from __future__ import annotations

import re
from typing import Any

from .json_calls import MalformedCall, checked_call, read_call, read_calls, read_object, skip_space
from .message import ToolCall
from .tools import FunctionTools, Read, read_attempts

TOOL_CALLS = "[TOOL_CALLS]"
_NAMED = re.compile(r"([^\s\[\]{}]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?(?=\{)")


class MistralParser:
    """Mistral, Ministral, Devstral. Raises ValueError when the tokenizer has no ``[TOOL_CALLS]``, as vLLM's does."""

    openings = (TOOL_CALLS,)

    def __init__(self, tokenizer: Any) -> None:
        if TOOL_CALLS not in tokenizer.get_vocab():
            raise ValueError(f"tool_call_parser=mistral does not fit this tokenizer: it has no {TOOL_CALLS}")

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format)."""
        return read_attempts(text, lambda at: text.find(TOOL_CALLS, at), lambda at: _read(text, at))

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> None:
        """None: a forced call is sampled as a JSON list."""


def _read(text: str, at: int) -> tuple[list[ToolCall], int]:
    at = skip_space(text, at + len(TOOL_CALLS))
    if text.startswith("[", at):
        return read_calls(text, at)
    if text.startswith("{", at):
        call, at = read_call(text, at)
        return [call], at
    named = _NAMED.match(text, at)
    if named is None:
        raise MalformedCall("neither JSON nor a name with arguments")
    arguments, at = read_object(text, named.end())
    return [checked_call(ToolCall(named[1], arguments))], at
