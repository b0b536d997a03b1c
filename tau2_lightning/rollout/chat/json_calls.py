"""Tool calls written in JSON: which text is one, and which is not.

The strings of a JSON text may contain anything, also the tags of a call format. So a call ends where its JSON ends, not
at the next tag. Its arguments are passed on as the policy wrote them: key order, spaces, numbers and repeated keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .message import ToolCall
from .surrogates import json_without_surrogates, without_surrogates

#: Lists and objects inside each other, in arguments. Encoders of clients give up at 254 (orjson) or 1,000 (Python).
MAX_DEPTH = 100
_SPACE = re.compile(r"[ \t\n\r]*")


class MalformedCall(ValueError):
    """A text that begins as a tool call and is none."""


def _no_json(constant: str) -> NoReturn:
    raise MalformedCall(f"{constant} is no JSON")


# Python's own default reads NaN and Infinity, which JSON does not have and other languages refuse.
_DECODER = json.JSONDecoder(parse_constant=_no_json)


def skip_space(text: str, at: int) -> int:
    """The first position from ``at`` on that is not JSON's white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def read_value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that starts at ``at``, and the position after it. Raises MalformedCall."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        # ValueError: also integers of more digits than Python reads.
        raise MalformedCall(str(error)) from error


def read_call(text: str, at: int, keys: Sequence[str] = ("arguments",)) -> tuple[ToolCall, int]:
    """The call ``{"name": ..., "arguments": {...}}`` that starts at ``at``, and the position after it.

    ``keys``: the names that the arguments may have, the preferred first. As everywhere, the last of two equal keys
    counts. Raises MalformedCall.
    """
    members: dict[str, tuple[Any, str]] = {}
    at = _after(text, at, "{")
    while True:
        key, at = read_value(text, at)
        if not isinstance(key, str):
            raise MalformedCall("a key is no string")
        start = _after(text, skip_space(text, at), ":")
        value, at = read_value(text, start)
        members[key] = (value, text[start:at])
        at = skip_space(text, at)
        if text.startswith("}", at):
            break
        at = _after(text, at, ",")
    name, _ = members.get("name", (None, ""))
    arguments = next((members[key][1] for key in keys if key in members), None)
    if not isinstance(name, str) or arguments is None:
        raise MalformedCall("a call needs a name and arguments")
    return checked_call(ToolCall(name, arguments)), at + 1


def read_calls(text: str, at: int, keys: Sequence[str] = ("arguments",)) -> tuple[list[ToolCall], int]:
    """The non-empty JSON list of calls that starts at ``at``, and the position after it. Raises MalformedCall."""
    at = _after(text, at, "[")
    calls = []
    while True:
        call, at = read_call(text, at, keys)
        calls.append(call)
        at = skip_space(text, at)
        if text.startswith("]", at):
            return calls, at + 1
        at = _after(text, at, ",")


def read_object(text: str, at: int) -> tuple[str, int]:
    """The JSON object that starts at ``at``, as it is written, and the position after it. Raises MalformedCall."""
    _, end = read_value(text, at)
    return text[at:end], end


def checked_call(call: ToolCall) -> ToolCall:
    """``call`` without lone surrogates. Raises MalformedCall unless it has a name and its arguments are a JSON object,
    not nested deeper than ``MAX_DEPTH``: clients call functions with ``**arguments``."""
    if not call.name:
        raise MalformedCall("the name is empty")
    value, end = read_value(call.arguments, skip_space(call.arguments, 0))
    if not isinstance(value, dict) or skip_space(call.arguments, end) != len(call.arguments):
        raise MalformedCall("the arguments are no JSON object")
    if call.arguments.count("{") + call.arguments.count("[") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise MalformedCall(f"the arguments are nested deeper than {MAX_DEPTH} levels")
    return ToolCall(without_surrogates(call.name), json_without_surrogates(call.arguments))


def _after(text: str, at: int, mark: str) -> int:
    """The next position after ``mark``, which must stand at ``at``, and after white space."""
    if not text.startswith(mark, at):
        raise MalformedCall(f"{mark!r} is missing")
    return skip_space(text, at + 1)


def _depth_exceeds(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [child for parent in level for child in _children(parent)]
        if not any(isinstance(child, dict | list) for child in level):
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
