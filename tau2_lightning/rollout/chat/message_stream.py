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
from .message import ParsedMessage, Tools
from .reasoning import THINK, Marks
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
    """Splits the thoughts between ``marks`` off growing text, as ``split_reasoning`` does for a whole text.

    Without ``marks``, all text is content.
    """

    def __init__(self, marks: Marks | None, *, open_at_start: bool = False) -> None:
        self._state = "content" if marks is None else "start"
        self._marks, self._opened = marks or THINK, open_at_start
        self._header = marks is not None and bool(marks.headers)  # whether a header may still come
        self._buffer = ""
        self._trim = False

    def feed(self, text: str, *, last: bool) -> tuple[str, str]:
        """(reasoning, content) that can be sent now."""
        self._buffer += text
        reasoning = ""
        if self._state == "start":
            head = self._buffer.lstrip()
            opening = self._marks.opening
            if head.startswith(opening):
                self._state, self._buffer, self._trim = "reasoning", head[len(opening) :], True
            elif last or not opening.startswith(head):
                self._state = "reasoning" if self._opened else "content"
                self._trim = self._opened
        if self._state == "reasoning":
            reasoning = self._reason(last)
        content = ""
        if self._state == "content":
            content = self._content(last)
        return reasoning, content

    def _content(self, last: bool) -> str:
        if self._trim:
            self._buffer = self._buffer.lstrip("\n")
            self._trim = not self._buffer
        if self._header and self._buffer:
            if not last and any(header.startswith(self._buffer) for header in self._marks.headers):
                return ""
            self._buffer, self._header = self._marks.bare(self._buffer), False
        content, self._buffer = self._buffer, ""
        return content

    def _reason(self, last: bool) -> str:
        if self._trim:
            self._buffer = self._buffer.lstrip("\n")
            self._trim = not self._buffer
        closing = self._marks.closing
        at = self._buffer.find(closing)
        if at >= 0:
            out = self._buffer[:at].rstrip("\n")
            self._buffer = self._buffer[at + len(closing) :]
            self._state, self._trim = "content", True
            return out
        end = len(self._buffer) if last else len(self._buffer) - partial_suffix(self._buffer, closing)
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
    reasoning = ReasoningStream(chat_format.marks, open_at_start=opened)
    return MessageStream(TextStream(chat_format, stop), reasoning, chat_format.tool_stream(tools), parallel)


def json_stream(chat_format: ChatFormat, *, stop: Sequence[str], calls: bool, parallel: bool) -> MessageStream:
    """A fresh stream for one choice that a grammar makes JSON: a list of calls with ``calls``, else the content."""
    reasoning = ReasoningStream(None)
    return MessageStream(TextStream(chat_format, stop), reasoning, CallStream(("",) if calls else ()), parallel)
