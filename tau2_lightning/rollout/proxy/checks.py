"""Checks of a request body against its struct; an error becomes a 400 that names the field.

Unsupported fields that would change the result are refused, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from .errors import APIError, invalid
from .wire import ChatMessage

S = TypeVar("S", bound=msgspec.Struct)
# Bookkeeping of the client: no effect on what is sampled.
_IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PART = re.compile(r"(messages\[\d+\]\.content)\[")


def checked(body: Mapping[str, Any], kind: type[S]) -> S:
    """``body`` as a ``kind``. Raises APIError 400."""
    refuse_unknown(body, kind)
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from error


def refuse_unknown(body: Mapping[str, Any], kind: type[msgspec.Struct]) -> None:
    """Raises APIError 400 for an unsupported field that changes the result.

    By hand: msgspec's ``forbid_unknown_fields`` would refuse a null, too, which clients send for an absent field.
    """
    known = kind.__struct_fields__
    for key, value in body.items():
        if key not in known and key not in _IGNORED and value is not None:
            raise invalid(f"unsupported parameter {key[:64]!r}", key[:64], "unsupported_parameter")


def check_messages(messages: list[ChatMessage], limit: int) -> None:
    """Checks that a struct cannot express: the operator's limit, and which messages need a content. Raises APIError
    400."""
    if len(messages) > limit:
        raise invalid(f"more than {limit} messages", "messages")
    for at, message in enumerate(messages):
        if message.content is None and message.tool_calls is None and message.role != "assistant":
            raise invalid("content is required", f"messages[{at}].content")


def _refusal(problem: str) -> APIError:
    """msgspec's message, ``Expected `float` <= 2.0 - at `$.temperature```, as a 400 about ``temperature``."""
    # From the right: a client's value of any length may come before it.
    why, _, where = problem.rpartition(" - at ") if " - at `" in problem else (problem, "", "")
    where = where.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".").removesuffix("[...]")
    if missing := _MISSING.match(why):
        where, why = f"{where}.{missing[1]}".lstrip("."), "is required"
    if part := _PART.match(where):
        return invalid("only text parts are supported", part[1], "unsupported_content")
    return invalid(f"{where or 'the body'}: {why[:300]}", where or None)
