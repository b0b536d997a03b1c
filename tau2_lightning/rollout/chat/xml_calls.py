"""Tool calls in the XML of Qwen3-Coder, Qwen3.5 and Nemotron 3: one element for the function, one for each argument.

Values carry no types, so the function's schema decides: a string is taken as it is, everything else is read as JSON. A
value ends at the first closing tag that is followed by another argument or by the end of the function. So tags inside a
value are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .hermes import TOOL_CLOSE, TOOL_OPEN
from .json_calls import MalformedCall, checked_call, skip_space
from .message import ToolCall
from .tools import FunctionTools, Read, read_attempts

FUNCTION_OPEN, FUNCTION_CLOSE = "<function=", "</function>"
_FUNCTION = re.compile(r"<function=([^>\n]+)>")
_ARGUMENT = re.compile(r"\s*<parameter=([^>\n]+)>\n?")
_ARGUMENT_END = re.compile(r"\n?</parameter>\s*(?=<parameter=|</function>)")
_WORDS = {"true": True, "false": False, "null": None, "none": None}  # some templates print Python's words


class XmlParser:
    """Reads ``<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>``; the outer tags are
    optional."""

    openings = (TOOL_OPEN, FUNCTION_OPEN)

    def parse(self, text: str, tools: FunctionTools) -> Read:
        """A turn's text as (content, tool calls, invalid_format)."""
        schemas = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}
        return read_attempts(text, lambda at: _find(text, at), lambda at: _read(text, at, schemas))

    def structural_tag(self, functions: FunctionTools, *, once: bool) -> None:
        """Returns None: a forced call is sampled as a JSON list."""


def _find(text: str, at: int) -> int:
    return min((found for mark in (TOOL_OPEN, FUNCTION_OPEN) if (found := text.find(mark, at)) >= 0), default=-1)


def _read(text: str, at: int, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[list[ToolCall], int]:
    if text.startswith(TOOL_OPEN, at):
        at = skip_space(text, at + len(TOOL_OPEN))
    function = _FUNCTION.match(text, at)
    if function is None:
        raise MalformedCall("no function")
    name, at = function[1], function.end()
    arguments: dict[str, Any] = {}
    while (argument := _ARGUMENT.match(text, at)) is not None:
        end = _ARGUMENT_END.search(text, argument.end())
        if end is None:
            raise MalformedCall("an argument without an end")
        key = argument[1]
        arguments[key] = _value(text[argument.end() : end.start()], schemas.get(name, {}).get(key))
        at = end.end()
    at = skip_space(text, at)
    if not text.startswith(FUNCTION_CLOSE, at):
        raise MalformedCall("a function without an end")
    at = skip_space(text, at + len(FUNCTION_CLOSE))
    if text.startswith(TOOL_CLOSE, at):
        at += len(TOOL_CLOSE)
    return [checked_call(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))], at


def _value(text: str, schema: Any) -> Any:
    types = set(_types(schema))
    if not types or types == {"string"}:
        return text
    word = text.strip().lower()
    if word in _WORDS and ("null" if _WORDS[word] is None else "boolean") in types:
        return _WORDS[word]
    if "string" in types:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # the agent's own mistake: the tool gets what it wrote


def _types(schema: Any) -> Iterator[str]:
    """The JSON types that a schema and its alternatives allow."""
    if not isinstance(schema, Mapping):
        return
    given = schema.get("type")
    yield from [given] if isinstance(given, str) else given or ()
    if "$ref" in schema or "properties" in schema:
        yield "object"
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key) or ():
            yield from _types(part)
    yield from ("string" if isinstance(item, str) else "number" for item in schema.get("enum") or () if not given)


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (function.get("parameters") or {}).get("properties")
    return found if isinstance(found, Mapping) else {}
