"""Chat messages: in the form of OpenAI clients, in the form of chat templates, and as parsed from a sampled turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

#: An OpenAI chat message as a JSON object.
Message = Mapping[str, Any]
#: The function tools of a request, None for none.
Tools = Sequence[Mapping[str, Any]] | None
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ToolCall:
    """A call the policy made: the function's name and its arguments as a JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ParsedMessage:
    """A sampled turn as an OpenAI client sees it.

    ``invalid_format`` is True when the turn tried to call a tool and failed (see `tools`). Its text is then in
    ``content``. ``text`` is everything that was sampled, without the end-of-turn token.
    """

    content: str | None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_format: bool = False
    text: str = ""


def text_of(content: Any) -> str:
    """The text of a message's ``content``: a string, None, or OpenAI text parts (joined by newlines, as vLLM does)."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    return "\n".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)


def parse_arguments(arguments: Any) -> Any:
    """Tool-call arguments in the form that templates expect: the JSON value, or the raw string where it is not JSON.

    Clients write none as null, as an empty text or as ``{}``.
    """
    if not arguments:
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def for_template(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it: text content, arguments as objects, no key whose value is None."""
    out = {key: value for key, value in message.items() if value is not None}
    out["content"] = text_of(message.get("content"))
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": parse_arguments(call["function"].get("arguments"))}}
            for call in message["tool_calls"]
        ]
    else:
        out.pop("tool_calls", None)
    return out


def tools_key(tools: Tools) -> bytes:
    """Digest of a tool list; equal lists with equal key order (hence equal prompt text) have equal digests."""
    return blake2b(orjson.dumps(tools), digest_size=16).digest() if tools else b""
