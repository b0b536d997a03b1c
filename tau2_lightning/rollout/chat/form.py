"""The form of messages that a chat template takes, where it is narrower than what OpenAI's clients send."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from .message import Message, for_template

OPENER = "Hello."
_SHORT = 9  # Mistral's templates refuse every other length
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TICKET_OPEN, _TICKET_CLOSE = "<ticket>", "</ticket>"


@dataclass(frozen=True)
class MessageForm:
    """The changes of messages before they are rendered. The default changes nothing.

    ``user_turn``: when a user message is added at the beginning: if the conversation has no user message (``missing``),
    or if its first message after the system text is not a user message (``first``). The added message is the ticket,
    which is removed from the system text, or else ``OPENER``. ``short_ids``: call ids have nine letters and digits.
    ``names``: tool messages carry the name of their function. ``text_arguments``: arguments are JSON text.
    """

    user_turn: Literal["as given", "missing", "first"] = "as given"
    short_ids: bool = False
    names: bool = False
    text_arguments: bool = False

    def applied(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """``messages`` in the form that the template accepts.

        The changes depend on the beginning of the conversation only. So the result for a longer conversation begins
        with the result for the shorter one.
        """
        out = [for_template(message) for message in self._placed(messages)]
        if self.names:
            _name_results(out)
        if self.short_ids or self.text_arguments:
            for message in out:
                self._respell(message)
        return out

    def call_id(self, given: str) -> str:
        """The id of a call in the template's form; the same for the same ``given``."""
        return short_id(given) if self.short_ids else given

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.user_turn == "as given" or not messages:
            return messages
        front = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
        present = any(
            message["role"] == "user" for message in messages[front:][: 1 if self.user_turn == "first" else None]
        )
        if present:
            return messages
        head, ticket = _without_ticket(messages[:front])
        return [*head, {"role": "user", "content": ticket or OPENER}, *messages[front:]]

    def _respell(self, message: dict[str, Any]) -> None:
        if self.short_ids and message.get("tool_call_id"):
            message["tool_call_id"] = short_id(message["tool_call_id"])
        if not message.get("tool_calls"):
            return
        message["tool_calls"] = [self._respelt(call) for call in message["tool_calls"]]

    def _respelt(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        out = dict(call)
        if self.short_ids:
            out["id"] = short_id(call.get("id") or function["name"])
        if self.text_arguments and not isinstance(function["arguments"], str):
            out["function"] = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        return out


def short_id(text: str) -> str:
    """``text`` if it consists of nine letters and digits; else nine letters and digits made from a hash of it."""
    if len(text) == _SHORT and text.isascii() and text.isalnum():
        return text
    number = int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
    digits = ""
    for _ in range(_SHORT):
        number, digit = divmod(number, len(_DIGITS))
        digits += _DIGITS[digit]
    return digits


def _without_ticket(system: Sequence[Message]) -> tuple[list[Message], str]:
    """The leading system messages without the ticket that the last of them contains, and the ticket with its tags."""
    if not system or not isinstance(text := system[-1].get("content"), str):
        return list(system), ""
    start, end = text.rfind(_TICKET_OPEN), text.rfind(_TICKET_CLOSE)
    if start < 0 or end < start:
        return list(system), ""
    end += len(_TICKET_CLOSE)
    rest = (text[:start].rstrip() + text[end:]).rstrip()
    kept = [{**system[-1], "content": rest}] if rest else []
    return [*system[:-1], *kept], text[start:end]


def _name_results(messages: list[dict[str, Any]]) -> None:
    """Give each tool message without a name the name of the call with the same id."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            if call.get("id"):
                names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]
