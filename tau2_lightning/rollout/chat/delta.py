"""Incremental rendering: the tokens that new messages add after a recorded turn.

The template itself gives the delta: its text after a substitute for the sampled turn. So this module contains no
template's syntax, and a turn costs the rendering of its own messages only, whatever the length of the policy text and
the tool list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .byte_cache import ByteCache, TokenCache, digest
from .codec import TokenCodec
from .message import Message, Tools, tools_key
from .template import ChatFormatError, ChatTemplate

DELTA_BYTES = 64 << 20
CLOSING_BYTES = 1 << 20
_MENTIONS_IDS = re.compile(r"tool_call_id|\.id\b|['\"]id['\"]")
_PLAIN_KEYS = frozenset({"role", "name", "content", "tool_call_id", "id"})


class DeltaRenderer:
    """Renders deltas of one template; ``stop_texts`` are the texts of the tokens that end a turn, with their ids."""

    def __init__(self, template: ChatTemplate, codec: TokenCodec, stop_texts: Mapping[str, int]) -> None:
        self._template, self._codec, self._stop_texts = template, codec, stop_texts
        self._closings: ByteCache[tuple[str, str]] = ByteCache(CLOSING_BYTES)
        self.deltas = TokenCache(DELTA_BYTES)
        self._uses_ids = template.form.names or bool(_MENTIONS_IDS.search(template.source))
        self._digested: tuple[Tools, bytes] = (None, b"")
        self._repeats_tools: ByteCache[bool] = ByteCache(CLOSING_BYTES)

    def render(
        self, reply: Message, new: Sequence[Message], ended: bool, tools: Tools, kwargs: Mapping[str, Any]
    ) -> list[int]:
        """Token ids to append to the turn ``reply`` before sampling the next one; a new list. See
        ``ChatFormat.render_delta``."""
        if tools and not self._needs_tools(tools, kwargs):
            tools = None
        key = None if tools or self._uses_ids else _cache_key(reply, new, ended, kwargs)
        # The samples of a task mostly get the same answers.
        known = None if key is None else self.deltas.get(key)
        if known is None:
            known = self._rendered(reply, new, ended, tools, kwargs)
            if key is not None:
                self.deltas.put(key, known)
        return known

    def _rendered(
        self, reply: Message, new: Sequence[Message], ended: bool, tools: Tools, kwargs: Mapping[str, Any]
    ) -> list[int]:
        closing, end_of_turn = self.closing(reply, new, kwargs)
        tail = self._template.tail(reply, new, tools, True, kwargs)
        if not tail.startswith(closing + end_of_turn):
            raise ChatFormatError("the chat template closes a turn differently depending on the text that follows it")
        # The end-of-turn token is encoded along, because some tokens swallow the white space that follows them.
        ids = self._codec.encode(tail[len(closing) :])
        return ids[1:] if ended and end_of_turn and ids[:1] == [self._stop_texts[end_of_turn]] else ids

    def closing(self, reply: Message, new: Sequence[Message], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """(syntax between a turn's text and its end-of-turn token, that token's text), cached by shape."""
        shape = digest([bool(reply.get("tool_calls")), [message["role"] for message in new], kwargs])
        found = self._closings.get(shape)
        if found is None:
            found = self._find_closing(reply, new, kwargs)
            self._closings.put(shape, found, 4 * sum(map(len, found)))
        return found

    def _find_closing(self, reply: Message, new: Sequence[Message], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        # Placeholders, because an end-of-turn token inside a tool result must not be taken for the turn's.
        blanks = [{**message, "content": "x"} for message in new]
        tail = self._template.tail(reply, blanks, None, True, kwargs)
        hits = [(at, text) for text in self._stop_texts if text and (at := tail.find(text)) >= 0]
        if hits:
            at, text = min(hits)
            return tail[:at], text
        end = self._template.tail(reply, [], None, False, kwargs) if reply.get("tool_calls") else ""
        return (end, "") if tail.startswith(end) else ("", "")

    def _needs_tools(self, tools: Tools, kwargs: Mapping[str, Any]) -> bool:
        """Whether the template repeats the tools after a turn; most templates write them once, at the beginning."""
        if tools is not self._digested[0]:
            self._digested = (tools, tools_key(tools))
        key = (self._digested[1], digest(kwargs))
        found = self._repeats_tools.get(key)
        if found is None:
            reply = {"role": "assistant", "content": "x"}
            probe = [{"role": "user", "content": "x"}]
            tail = self._template.tail
            found = tail(reply, probe, tools, True, kwargs) != tail(reply, probe, None, True, kwargs)
            self._repeats_tools.put(key, found, 0)
        return found


def _cache_key(reply: Message, new: Sequence[Message], ended: bool, kwargs: Mapping[str, Any]) -> bytes | None:
    """A digest of everything that the delta of a template without ids depends on; None for messages with unusual
    fields."""
    if any(message.keys() - _PLAIN_KEYS or type(message.get("content")) is not str for message in new):
        return None
    calls = [call["function"]["name"] for call in reply.get("tool_calls") or ()]
    texts = [[message["role"], message.get("name"), message["content"]] for message in new]
    try:
        return digest([calls, texts, ended, kwargs])
    except TypeError:  # half a surrogate pair: another part refuses it
        return None
