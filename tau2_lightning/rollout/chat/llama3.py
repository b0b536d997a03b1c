"""Llama 3's JSON tool calls: ``{"name": ..., "parameters": {...}}``, several separated by ``;``.

The format has no closing tag, and only sometimes an opening one, so an attempt of a call is told from other JSON by
what it says: `_attempts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .json_calls import MalformedCall, read_call, read_value, skip_space
from .message import ToolCall
from .tools import FunctionTools, Read, names_of, read_attempts

TAG = "<|python_tag|>"
_KEYS = ("arguments", "parameters")
_HEAD = re.compile(
    r"""(?:\[\s*)?\{\s*(?:["']type["']\s*:\s*["']function["']\s*,\s*)?["']name["']\s*:\s*"""
    r"""["'](?P<name>[^"'\n]*)(?P<end>["']\s*(?:,\s*["'](?P<key>\w*)|\}|$)|$)?"""
)
_BETWEEN = re.compile(r"[\s;,]*")


class Llama3Parser:
    """Llama 3.x and 4. Raises ValueError when the tokenizer has no ``<|python_tag|>``, as vLLM's parser does."""

    openings = (TAG, "{", "[")

    def __init__(self, tokenizer: Any) -> None:
        if TAG not in tokenizer.get_vocab():
            raise ValueError(f"tool_call_parser=llama3_json does not fit this tokenizer: it has no {TAG}")

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format)."""
        if TAG not in text and "{" not in text:
            return text, (), False
        names = names_of(tools)
        return read_attempts(text, lambda at: min(_attempts(text, at, names), default=-1), lambda at: _read(text, at))

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> None:
        """None: a forced call is sampled as a JSON list."""


def _attempts(text: str, at: int, names: frozenset[str]) -> Iterator[int]:
    """Where attempts of a call begin, from ``at`` on, in no order.

    These are: the tag; an object that begins with the name of a tool, or with a name and then arguments; and at the
    start of the turn any readable call, and broken JSON that begins with a name. A whole object without arguments is an
    answer in JSON, and no attempt.
    """
    tag = text.find(TAG, at)
    if tag >= 0:
        yield tag
    first = skip_space(text, at)
    if not text[:at].strip() and text.startswith("{", first) and (_is_call(text, first) or _breaks(text, first)):
        yield first
    for head in _HEAD.finditer(text, at):
        name = head["name"]
        cut = head["end"] == "" and any(known.startswith(name) for known in names)
        if name in names or head["key"] in _KEYS or cut:
            yield head.start()
            return


def _is_call(text: str, at: int) -> bool:
    try:
        read_call(text, at, _KEYS)
    except MalformedCall:
        return False
    return True


def _breaks(text: str, at: int) -> bool:
    try:
        read_value(text, at)
    except MalformedCall:
        return _HEAD.match(text, at) is not None
    return False


def _read(text: str, at: int) -> tuple[list[ToolCall], int]:
    calls: list[ToolCall] = []
    if text.startswith(TAG, at):
        at += len(TAG)
    at = skip_space(text, at)
    if text.startswith("[", at):
        at += 1
    at = skip_space(text, at)
    while not calls or text.startswith("{", at):
        call, end = read_call(text, at, _KEYS)
        calls.append(call)
        between = _BETWEEN.match(text, end)
        at = between.end() if between else end
    return calls, at
