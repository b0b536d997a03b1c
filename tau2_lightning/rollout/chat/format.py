"""Messages <-> tokens for any Hugging Face chat template; sampled turns are never tokenised again.

A session's first request is rendered in full. Every later one is the recorded tokens plus ``render_delta``: the
template's text after the sampled turn, the new messages, and the next generation prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tau2_lightning.policy.hub import described

from . import sentinels
from .byte_cache import TokenCache, text_digest
from .codec import TokenCodec
from .delta import DeltaRenderer
from .form import MessageForm
from .form_probe import find_form
from .message import Message, ParsedMessage, Tools
from .parser_probe import AUTO, ParserChoice, WrittenCalls, find_parser
from .parsers import make_tool_parser
from .reasoning import marks_for, split_reasoning
from .template import ChatFormatError, ChatTemplate, one_template
from .tools import CallStream
from .turn import TurnParser
from .written import turn_text

PROMPT_BYTES = 64 << 20


class ChatFormat:
    """Renders and parses one model's chat format. Stateless except for caches; safe to share between sessions.

    ``stop_token_ids`` are the ids that end a turn: the tokenizer's EOS, those of the model's generation config, and
    the end-of-turn token the template itself writes. ``reasoning_parser`` names the marks of the thoughts that are
    split off (`reasoning.marks_for`): ``auto`` finds the template's marks, None splits nothing off.
    ``tool_call_parser`` names the parser of tool calls; ``auto`` chooses the parser that reads the calls which the
    template writes. ``form`` is the form of messages that the template accepts, found by rendering. Raises
    ChatFormatError without a chat template, and ValueError for an unknown parser or if no parser reads the calls.
    """

    def __init__(
        self,
        tokenizer: Any,
        tool_call_parser: str | None = "hermes",
        *,
        reasoning_parser: str | None = "auto",
        stop_token_ids: Iterable[int] = (),
        chat_template: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        source = chat_template or one_template(tokenizer)
        if not source:
            raise ChatFormatError("this tokenizer has no chat template, so messages cannot become tokens")
        self.marks = marks_for(reasoning_parser, source, tokenizer)
        as_given = ChatTemplate(tokenizer, source)
        self._template, self._codec = as_given.of_form(find_form(as_given)), TokenCodec(tokenizer)
        self._encoded = TokenCache(PROMPT_BYTES)
        self.stop_token_ids = self._stops(stop_token_ids)
        stop_texts = {self._codec.decode([token]): token for token in sorted(self.stop_token_ids)}
        self._delta = DeltaRenderer(self._template, self._codec, stop_texts)
        self._read_with(None if tool_call_parser == AUTO else tool_call_parser)
        if tool_call_parser == AUTO:
            chosen = self.parser_choice().name
            if chosen is None:
                raise ValueError("no tool-call parser reads the calls that the chat template writes")
            self._read_with(chosen)

    @classmethod
    def from_pretrained(cls, path: str | Path, tool_call_parser: str | None = "hermes", **kwargs: Any) -> ChatFormat:
        """Load the tokenizer of a Hugging Face folder or hub id, with the EOS ids of its ``generation_config.json``."""
        from transformers import AutoTokenizer

        stops: list[int] = []
        folder = described(path)
        config = folder / "generation_config.json"
        if config.is_file():
            eos = json.loads(config.read_text()).get("eos_token_id")
            stops = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return cls(
            AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False),
            tool_call_parser,
            stop_token_ids=stops,
            **kwargs,
        )

    def _read_with(self, tool_call_parser: str | None) -> None:
        self.tool_parser = make_tool_parser(tool_call_parser, self.tokenizer)
        self._parser = TurnParser(self._codec, self.tool_parser, self.stop_token_ids, self.marks)

    def _stops(self, given: Iterable[int]) -> frozenset[int]:
        stops = {int(token) for token in given}
        if self.tokenizer.eos_token_id is not None:
            stops.add(int(self.tokenizer.eos_token_id))
        written = self.encode(self._template.tail({"role": "assistant"}, [], None, False, {}))
        if written and self._codec.decode(written[:1]) in self.tokenizer.get_added_vocab():
            stops.add(written[0])
        return frozenset(stops)

    # -- messages -> tokens ---------------------------------------------------------------------------------------

    def render_text(self, messages: Sequence[Message], tools: Tools = None, **template_kwargs: Any) -> str:
        """The full prompt as text, generation prompt included. Raises ChatFormatError."""
        return self._template.render(messages, tools, True, template_kwargs)

    def render(self, messages: Sequence[Message], tools: Tools = None, **template_kwargs: Any) -> list[int]:
        """The full prompt as token ids, generation prompt included. Equal prompts are encoded once. A new list.

        Raises ChatFormatError.
        """
        text = self.render_text(messages, tools, **template_kwargs)
        key = text_digest(text)
        found = self._encoded.get(key)
        if found is None:
            found = self.encode(text)
            self._encoded.put(key, found)
        return found

    @property
    def cached_bytes(self) -> dict[str, int]:
        """What the caches of token ids hold now, by their names; each is bounded (`byte_cache.ByteCache`)."""
        return {"prompts": self._encoded.cache.held, "deltas": self._delta.deltas.cache.held}

    def render_delta(
        self, reply: Message, new: Sequence[Message], *, ended: bool, tools: Tools = None, **template_kwargs: Any
    ) -> list[int]:
        """Token ids to append to a recorded turn before sampling the next one.

        ``reply`` is the sampled turn's message, ``new`` what came after it. ``ended``: whether the sampled tokens end
        with a stop token (a truncated turn gets the template's end-of-turn token here, unsampled). ``tools`` matter
        only to templates that repeat them after a turn. Raises ChatFormatError.
        """
        return self._delta.render(reply, new, ended, tools, template_kwargs)

    def turn(
        self,
        before: Sequence[Message],
        reply: Message,
        new: Sequence[Message] = (),
        tools: Tools = None,
        **template_kwargs: Any,
    ) -> list[int]:
        """Token ids of ``reply`` as the policy would sample it after the prompt of ``before``, with the end-of-turn
        token if the template writes one before ``new``. Raises ChatFormatError."""
        return self.encode(turn_text(self._template, self._delta, before, reply, new, tools, template_kwargs))

    def rewrites_history(
        self, before: Sequence[Message], reply: Message, new: Sequence[Message], tools: Tools, **template_kwargs: Any
    ) -> bool:
        """Whether a new rendering of the whole conversation would change what the policy saw or thought.

        True when earlier messages render differently once ``new`` follows them, or when the reply's reasoning is
        left out (Qwen3 removes it before a later user message). False when the template cannot render the conversation:
        Llama 3 refuses turns with several calls, which can only be continued.
        """
        try:
            prompt = self.render_text(before, tools, **template_kwargs)
            full = self.render_text([*before, reply, *new], tools, **template_kwargs)
        except ChatFormatError:
            return False
        reasoning = (reply.get("reasoning_content") or "").strip()
        return not full.startswith(prompt) or (bool(reasoning) and reasoning not in full[len(prompt) :])

    def keeps(
        self, before: Sequence[Message], reply: Message, new: Sequence[Message], tools: Tools, **template_kwargs: Any
    ) -> bool:
        """Whether a new rendering begins with the prompt of ``before`` and the turn ``reply`` as it was sampled."""
        try:
            sampled = self.decode(self.turn(before, reply, new, tools, **template_kwargs))
            prompt = self.render_text(before, tools, **template_kwargs)
            return self.render_text([*before, reply, *new], tools, **template_kwargs).startswith(prompt + sampled)
        except ChatFormatError:
            return False

    def encode(self, text: str) -> list[int]:
        """Token ids of text that already carries its special tokens."""
        return self._codec.encode(text)

    # -- tokens -> message ----------------------------------------------------------------------------------------

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether a sampled turn ends with a stop token."""
        return self._parser.ended(token_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a sampled turn without its end-of-turn token; special tokens inside it stay visible."""
        return self._parser.decode(token_ids)

    def parse(
        self,
        token_ids: Sequence[int],
        *,
        tools: Tools = None,
        prompt_tail: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> ParsedMessage:
        """A sampled turn as a message. Tool calls are looked for only when ``tools`` were offered.

        ``prompt_tail``: the last tokens before the turn, which show whether the prompt opened a reasoning block.
        ``stop``: strings that ended it; the text is cut before the first.
        """
        return self._parser.parse(self.decode(token_ids), tools, prompt_tail, stop)

    def tool_stream(self, tools: Tools) -> CallStream:
        """A fresh stream of one turn's text; everything is content when no tools were offered."""
        return CallStream(self.tool_parser.openings if tools else ())

    def opens_reasoning(self, prompt_tail: Sequence[int]) -> bool:
        """Whether a prompt ends inside an open block of thoughts."""
        return self._parser.opens_reasoning(prompt_tail)

    def token_text(self, token: int) -> str:
        """One token on its own, as ``logprobs`` entries show it."""
        return self._codec.decode([token])

    # -- the template ---------------------------------------------------------------------------------------------

    @property
    def form(self) -> MessageForm:
        """The form of messages that the template accepts."""
        return self._template.form

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return self._template

    def parser_choice(self) -> ParserChoice:
        """The parser that reads the calls of the template itself."""
        return find_parser(self.tokenizer, sentinels.TOOLS, *self.written_calls())

    def written_calls(self) -> tuple[WrittenCalls, WrittenCalls]:
        """A turn with one call and a turn with two, as the policy would sample them."""
        results = [sentinels.RESULT_TURN, sentinels.SECOND_RESULT_TURN]
        return self._written(sentinels.CALL_TURN, results[:1]), self._written(sentinels.PARALLEL_TURN, results)

    def _written(self, turn: Message, results: Sequence[Message]) -> WrittenCalls:
        try:
            text = self.decode(self.turn(sentinels.OPENING, turn, results, sentinels.TOOLS))
            prompt = self.render(sentinels.OPENING, sentinels.TOOLS)
        except ChatFormatError:
            text, prompt = "", []
        if self.marks is not None:
            _, text = split_reasoning(text, open_at_start=self.opens_reasoning(prompt[-8:]), marks=self.marks)
        return WrittenCalls.of(text.strip(), turn)

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return self._codec.vocabulary_size

    @property
    def byte_tokens(self) -> frozenset[int]:
        """The tokens of single bytes that the vocabulary falls back to."""
        return self._codec.byte_tokens

    @property
    def fast_tokenizer(self) -> Any:
        """The Rust tokenizer; None for a slow tokenizer."""
        return self._codec.fast
