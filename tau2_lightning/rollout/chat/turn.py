"""Parsing: the tokens of a sampled turn as a message, with its reasoning and tool calls split off."""

from __future__ import annotations

from collections.abc import Sequence

from .codec import TokenCodec
from .message import ParsedMessage, Tools
from .reasoning import Marks, split_reasoning
from .surrogates import without_surrogates
from .tools import ToolCallParser, read_turn


class TurnParser:
    """Reads the turns of one model.

    ``stop_token_ids``: the ids that end a turn. ``marks``: those around thoughts; None: thoughts are not split off.
    """

    def __init__(
        self, codec: TokenCodec, tool_parser: ToolCallParser, stop_token_ids: frozenset[int], marks: Marks | None
    ) -> None:
        self._codec, self._tool_parser = codec, tool_parser
        self._stops, self._marks = stop_token_ids, marks

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether a sampled turn ends with a stop token."""
        return bool(token_ids) and token_ids[-1] in self._stops

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a sampled turn without its end-of-turn token; special tokens inside it stay visible."""
        return without_surrogates(self._codec.decode(token_ids[:-1] if self.ended(token_ids) else token_ids))

    def opens_reasoning(self, prompt_tail: Sequence[int]) -> bool:
        """Whether a prompt, of which these are the last tokens, ends inside an open block of thoughts."""
        if not prompt_tail or self._marks is None:
            return False
        return self._codec.decode(prompt_tail[-8:]).rstrip().endswith(self._marks.opening.rstrip())

    def parse(self, text: str, tools: Tools, prompt_tail: Sequence[int], stop: Sequence[str]) -> ParsedMessage:
        """The decoded turn ``text`` as a message. See ``ChatFormat.parse``."""
        for word in stop:
            text = text.partition(word)[0]
        reasoning, rest = None, text
        if self._marks is not None:
            opened = self.opens_reasoning(prompt_tail)
            reasoning, rest = split_reasoning(text, open_at_start=opened, marks=self._marks)
        if not tools:
            return ParsedMessage(rest or None, reasoning, text=text)
        content, calls, invalid = read_turn(self._tool_parser, rest, tools)
        return ParsedMessage(content or None, reasoning, calls, invalid, text)
