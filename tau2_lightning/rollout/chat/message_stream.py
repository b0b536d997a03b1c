"""Streaming: the tokens of a growing turn -> deltas of reasoning, content and tool calls.

Each piece is sent once and never changed. Text whose meaning is still open (half a tag, half a stop string, an
incomplete character) is held back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers.decoders import DecodeStream

from .format import ChatFormat
from .message import THINK_CLOSE, THINK_OPEN, ParsedMessage, Tools
from .tools import CallStream, Delta, partial_suffix


class TextStream:
    """Token ids -> text, whole characters only, without the end-of-turn token and what follows a stop string."""

    def __init__(self, chat_format: ChatFormat, stop: Sequence[str]) -> None:
        self._format, self._stop = chat_format, tuple(stop)
        self._decoder = DecodeStream(skip_special_tokens=False)
        self._core, self._byte_tokens = chat_format.fast_tokenizer, chat_format.byte_tokens
        self._ids: list[int] = []
        self._unread: list[int] = []
        self._text = ""
        self._sent = 0

    def feed(self, token_ids: Sequence[int], *, last: bool) -> str:
        """The text that can be sent now."""
        self._ids += token_ids
        self._unread += token_ids
        if last:
            # Decodes the whole turn together, so that the streamed text equals the answer to a plain request.
            self._text = self._format.decode(self._ids)
        elif ready := self._ready():
            settled = self._unread[:ready]
            del self._unread[:ready]
            if self._core is not None:
                self._text += self._decoder.step(self._core, settled) or ""
            else:
                read = self._ids[: len(self._ids) - len(self._unread)]
                self._text = self._format.decode(read).rstrip("\ufffd")
        end = len(self._text) if last else len(self._text) - partial_suffix(self._text, *self._stop)
        cuts = [at for word in self._stop if (at := self._text.find(word)) >= 0]
        out = self._text[self._sent : min([end, *cuts])]
        self._sent += len(out)
        return out

    def _ready(self) -> int:
        """How many of the unread tokens have a text that no later token changes."""
        # A stop token at the end is the end of the turn, unless more follows.
        ready = len(self._unread) - self._format.ended(self._unread)
        # A run of byte tokens is decoded as one: <0x41> alone is "A", and before <0xFF> it is not.
        while ready and self._unread[ready - 1] in self._byte_tokens:
            ready -= 1
        return ready


class ReasoningStream:
    """Splits ``<think>`` blocks off growing text, newlines around them dropped as ``split_reasoning`` does."""

    def __init__(self, *, open_at_start: bool, enabled: bool) -> None:
        self._state = "start" if enabled else "content"
        self._opened = open_at_start
        self._buffer = ""
        self._trim = False

    def feed(self, text: str, *, last: bool) -> tuple[str, str]:
        """(reasoning, content) that can be sent now."""
        self._buffer += text
        reasoning = ""
        if self._state == "start":
            head = self._buffer.lstrip()
            if head.startswith(THINK_OPEN):
                self._state, self._buffer, self._trim = "reasoning", head[len(THINK_OPEN) :], True
            elif last or not THINK_OPEN.startswith(head):
                self._state = "reasoning" if self._opened else "content"
                self._trim = self._opened
        if self._state == "reasoning":
            reasoning = self._reason(last)
        content = ""
        if self._state == "content":
            content, self._buffer = self._buffer, ""
            if self._trim:
                content = content.lstrip("\n")
                self._trim = not content
        return reasoning, content

    def _reason(self, last: bool) -> str:
        if self._trim:
            self._buffer = self._buffer.lstrip("\n")
            self._trim = not self._buffer
        at = self._buffer.find(THINK_CLOSE)
        if at >= 0:
            out = self._buffer[:at].rstrip("\n")
            self._buffer = self._buffer[at + len(THINK_CLOSE) :]
            self._state, self._trim = "content", True
            return out
        end = len(self._buffer) if last else len(self._buffer) - partial_suffix(self._buffer, THINK_CLOSE)
        out = self._buffer[:end].rstrip("\n")
        self._buffer = self._buffer[len(out) :]
        return out


@dataclass
class MessageStream:
    """One choice: feed it chunks of tokens, send its deltas, and read the message that the client has assembled."""

    text: TextStream
    reasoning: ReasoningStream
    calls: CallStream
    parallel: bool = True
    sent_content: str = ""
    sent_reasoning: str = ""
    sent_calls: list[dict[str, Any]] = field(default_factory=list)

    def feed(self, token_ids: Sequence[int], *, last: bool) -> Iterator[Delta]:
        """Deltas of a chunk of tokens."""
        thought, rest = self.reasoning.feed(self.text.feed(token_ids, last=last), last=last)
        if thought:
            yield from self._sent(Delta(reasoning=thought))
        for delta in self.calls.feed(rest):
            yield from self._sent(delta)

    def finish(self, parsed: ParsedMessage) -> Iterator[Delta]:
        """Deltas that are possible only at the end of the turn."""
        for delta in self.calls.finish(parsed):
            yield from self._sent(delta)

    def _sent(self, delta: Delta) -> Iterator[Delta]:
        if delta.call is None:
            self.sent_content += delta.content
            self.sent_reasoning += delta.reasoning
        elif delta.call > 0 and not self.parallel:
            return
        else:
            self.sent_calls.append({"name": delta.name, "arguments": delta.arguments})
        yield delta


def message_stream(
    chat_format: ChatFormat,
    *,
    tools: Tools,
    prompt_tail: Sequence[int],
    stop: Sequence[str],
    parallel: bool,
) -> MessageStream:
    """A fresh stream for one choice in the model's own format."""
    opened = chat_format.opens_reasoning(prompt_tail)
    reasoning = ReasoningStream(open_at_start=opened, enabled=chat_format.splits_reasoning)
    return MessageStream(TextStream(chat_format, stop), reasoning, chat_format.tool_stream(tools), parallel)


def json_stream(chat_format: ChatFormat, *, stop: Sequence[str], calls: bool, parallel: bool) -> MessageStream:
    """A fresh stream for one choice that a grammar makes JSON: a list of calls with ``calls``, else the content."""
    reasoning = ReasoningStream(open_at_start=False, enabled=False)
    return MessageStream(TextStream(chat_format, stop), reasoning, CallStream(("",) if calls else ()), parallel)
