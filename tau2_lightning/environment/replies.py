"""Read an agent's reply in OpenAI's form as tau2 must see it. Mistakes are counted; none raises an error."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Arguments that are not a JSON object reach the tool as this one argument, which no tool has. So tau2 itself answers
# with an error that names it, counts the error, and gets the same error when the trajectory is replayed.
MALFORMED = "arguments_are_not_a_JSON_object"


@dataclass(frozen=True)
class Call:
    """One tool call. ``arguments`` is always an object: ``{MALFORMED: text}`` when the agent's was none."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """``content`` is the text (or ""), ``calls`` the tool calls, ``message`` the OpenAI message for the history.
    ``mistakes`` are counts by kind; see `read_reply`. ``thoughts`` is the reasoning beside the message.
    """

    content: str
    calls: tuple[Call, ...]
    message: dict[str, Any]
    mistakes: Counter[str] = field(default_factory=Counter)
    thoughts: str | None = None


def read_reply(message: Mapping[str, Any], turn: int) -> Reply:
    """Read an OpenAI assistant message. Missing call ids are filled in; nothing else of ``message`` is changed.

    Mistakes are counted by kind: ``malformed_arguments`` (no JSON object: broken, empty, list, null, NaN),
    ``unnamed_tool``, ``several_calls`` and ``text_beside_tool_call``.
    """
    mistakes: Counter[str] = Counter()
    calls, kept = [], []
    for index, raw in enumerate(message.get("tool_calls") or ()):
        function = raw.get("function") or {}
        name, text = function.get("name"), function.get("arguments")
        if not isinstance(name, str) or not name:
            mistakes["unnamed_tool"] += 1
            name = "" if name is None else str(name)
        call_id = raw.get("id") or f"call_{turn}_{index}"
        arguments = json_object(text)
        if arguments is None:
            mistakes["malformed_arguments"] += 1
            calls.append(Call(call_id, clean(name), {MALFORMED: clean(str(text))}))
        else:
            calls.append(Call(call_id, clean(name), arguments))
        kept.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": text}})
    content = message.get("content")
    text = clean(content) if isinstance(content, str) else ""
    if len(calls) > 1:
        mistakes["several_calls"] += 1
    if calls and text.strip():
        mistakes["text_beside_tool_call"] += 1
    history = {"role": "assistant", "content": content}
    if kept:
        history["tool_calls"] = kept
    thoughts = message.get("reasoning_content")
    return Reply(text, tuple(calls), history, mistakes, clean(thoughts) if isinstance(thoughts, str) else None)


def clean(text: str) -> str:
    """The text without lone surrogates, which cannot be written to a results file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def json_object(text: Any) -> dict[str, Any] | None:
    """The JSON object in ``text``, or None. NaN and infinities are not JSON, and would not survive a replay."""
    if not isinstance(text, str):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in text:
            # An escaped lone surrogate parses, but cannot be written to a results file.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        # ValueError covers broken JSON, lone surrogates and integers too long for Python.
        return None
    return value if isinstance(value, dict) else None


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
