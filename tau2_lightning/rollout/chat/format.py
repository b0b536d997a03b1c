"""Messages <-> tokens for any Hugging Face chat template, without ever tokenising a sampled turn again.

A session's first request is rendered in full. Every later one is the recorded tokens plus ``render_delta``: what the
template puts after the sampled turn, the new messages, and the next generation prompt. The delta is read off the
template itself: a stand-in for the sampled turn that carries an unguessable mark is rendered with the new messages
after it, and what follows the mark's end-of-turn token is the delta. So no template's syntax is written down here, and
a turn costs the rendering of its own messages only, however long the policy text and the tool list are.
"""

from __future__ import annotations

import inspect
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tau2_lightning.rollout.chat.parsers import make_tool_parser

from .message import THINK_CLOSE, THINK_OPEN, ParsedMessage, split_reasoning
from .tools import PlainStream, ToolCallStream

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None
_CACHED_PROMPTS = 64
_CACHED_DELTAS = 8192
_MENTIONS_IDS = re.compile(r"tool_call_id|\.id\b|['\"]id['\"]")
_PLAIN_KEYS = frozenset({"role", "name", "content", "tool_call_id", "id"})
_RESERVED = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}


class ChatFormatError(ValueError):
    """The template refuses these messages (its own ``raise_exception``) or cannot be continued from a sampled turn."""


def text_of(content: Any) -> str:
    """The text of a message's ``content``: a string, None, or OpenAI text parts (joined by newlines, as vLLM does)."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    return "\n".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)


def parse_arguments(arguments: Any) -> Any:
    """Tool-call arguments as templates want them: the JSON value, or the raw string where it is not JSON."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments) if arguments else {}
    except (ValueError, RecursionError):
        return arguments


def for_template(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it: text content, arguments as objects, nothing that is None."""
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


def _delta_key(reply: Message, new: Sequence[Message], ended: bool, kwargs: Mapping[str, Any]) -> Any:
    """What the delta of a template that never looks at ids depends on; None for messages with anything unusual."""
    if any(message.keys() - _PLAIN_KEYS or type(message.get("content")) is not str for message in new):
        return None
    calls = tuple(call["function"]["name"] for call in reply.get("tool_calls") or ())
    said = tuple((message["role"], message.get("name"), message["content"]) for message in new)
    return calls, said, ended, orjson.dumps(kwargs)


def _private_copy(tokenizer: Any) -> Any:
    """The Rust tokenizer behind a fast one, without its truncation and padding; None for a slow one.

    A direct call costs a tenth of the wrapper's, which prepares batches and padding for one short string.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    core = type(core).from_str(core.to_str())
    core.no_truncation()
    core.no_padding()
    return core


class ChatFormat:
    """Renders and parses one model's chat format. Stateless but for caches; safe to share between sessions.

    ``stop_token_ids`` are the ids that end a turn: the tokenizer's EOS, those of the model's generation config, and
    the end-of-turn token the template itself writes. ``reasoning_parser``: ``auto`` splits ``<think>`` blocks when the
    template knows them, ``think`` always, None never.
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
        self._template = chat_template or tokenizer.chat_template
        if not self._template:
            raise ChatFormatError("this tokenizer has no chat template, so messages cannot become tokens")
        if reasoning_parser not in ("auto", "think", "qwen3", "deepseek_r1", None):
            raise ValueError(f"reasoning_parser={reasoning_parser!r}: use auto, think, qwen3, deepseek_r1 or null")
        knows_thinking = THINK_CLOSE in self._template
        self.splits_reasoning = reasoning_parser is not None and (reasoning_parser != "auto" or knows_thinking)
        self._fast = _private_copy(tokenizer)
        self._vocabulary_size = max(tokenizer.get_vocab().values()) + 1
        self._tool_parser = make_tool_parser(tool_call_parser, tokenizer)
        self.tool_call_parser = tool_call_parser
        self._mark = "m" + secrets.token_hex(12)
        self._encoded: OrderedDict[str, list[int]] = OrderedDict()
        self._closings: dict[Any, tuple[str, str]] = {}
        self._deltas: dict[Any, list[int]] = {}
        self._uses_ids = bool(_MENTIONS_IDS.search(self._template))
        self._digested: tuple[Tools, bytes] = (None, b"")
        self._tools_in_delta: dict[Any, bool] = {}
        stops = {int(token) for token in stop_token_ids}
        if tokenizer.eos_token_id is not None:
            stops.add(int(tokenizer.eos_token_id))
        self._stop_texts: dict[str, int] = {}
        written = self.encode(self._tail({"role": "assistant"}, [], None, False, {}))
        if written and self._decode(written[:1]) in tokenizer.get_added_vocab():
            stops.add(written[0])
        self._stop_texts = {self._decode([token]): token for token in sorted(stops)}
        self.stop_token_ids = frozenset(stops)

    @classmethod
    def from_pretrained(cls, path: str | Path, tool_call_parser: str | None = "hermes", **kwargs: Any) -> ChatFormat:
        """Load the tokenizer of a Hugging Face folder, with the EOS ids of its ``generation_config.json``."""
        from transformers import AutoTokenizer

        stops: list[int] = []
        config = Path(path) / "generation_config.json"
        if config.is_file():
            eos = json.loads(config.read_text()).get("eos_token_id")
            stops = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        return cls(AutoTokenizer.from_pretrained(path), tool_call_parser, stop_token_ids=stops, **kwargs)

    # -- messages -> tokens ---------------------------------------------------------------------------------------

    def render_text(self, messages: Sequence[Message], tools: Tools = None, **template_kwargs: Any) -> str:
        """The full prompt as text, generation prompt included. Raises ChatFormatError."""
        return self._render([for_template(message) for message in messages], tools, True, template_kwargs)

    def render(self, messages: Sequence[Message], tools: Tools = None, **template_kwargs: Any) -> list[int]:
        """The full prompt as token ids, generation prompt included. Equal prompts are encoded once. A new list."""
        text = self.render_text(messages, tools, **template_kwargs)
        found = self._encoded.get(text)
        if found is None:
            found = self._encoded[text] = self.encode(text)
            if len(self._encoded) > _CACHED_PROMPTS:
                self._encoded.popitem(last=False)
        else:
            self._encoded.move_to_end(text)
        return list(found)

    def render_delta(
        self, reply: Message, new: Sequence[Message], *, ended: bool, tools: Tools = None, **template_kwargs: Any
    ) -> list[int]:
        """Tokens to append to a recorded turn before sampling the next one.

        ``reply`` is the sampled turn's message, ``new`` what came after it; ``ended`` says whether the sampled tokens
        end with a stop token (a truncated turn gets the template's end-of-turn token here, unsampled). ``tools``
        matter only to templates that repeat them late; others never see them. Raises ChatFormatError.
        """
        if tools and not self._delta_needs_tools(tools, template_kwargs):
            tools = None
        key = None if tools or self._uses_ids else _delta_key(reply, new, ended, template_kwargs)
        known = self._deltas.get(key)
        if known is None:
            known = self._render_delta(reply, new, ended, tools, template_kwargs)
            if key is not None:
                # The samples of a task mostly hear the same answers.
                self._deltas[key] = known
                if len(self._deltas) > _CACHED_DELTAS:
                    del self._deltas[next(iter(self._deltas))]
        return list(known)

    def _render_delta(
        self, reply: Message, new: Sequence[Message], ended: bool, tools: Tools, template_kwargs: Mapping[str, Any]
    ) -> list[int]:
        closing, end_of_turn = self._closing(reply, new, template_kwargs)
        tail = self._tail(reply, [for_template(message) for message in new], tools, True, template_kwargs)
        if not tail.startswith(closing + end_of_turn):
            raise ChatFormatError("the chat template closes a turn differently depending on the text that follows it")
        text = tail[len(closing) :]
        # The end-of-turn token is encoded along, because some tokens swallow the white space that follows them.
        ids = self.encode(text)
        return ids[1:] if ended and end_of_turn and ids[:1] == [self._stop_texts[end_of_turn]] else ids

    def rewrites_history(
        self, before: Sequence[Message], reply: Message, new: Sequence[Message], tools: Tools, **template_kwargs: Any
    ) -> bool:
        """Whether the template, asked to render it all again, would change what the policy saw or thought.

        True when earlier messages render differently once ``new`` follows them, or when the reply's reasoning is
        left out (Qwen3 removes it behind a user message).
        """
        prompt = self.render_text(before, tools, **template_kwargs)
        full = self.render_text([*before, reply, *new], tools, **template_kwargs)
        reasoning = (reply.get("reasoning_content") or "").strip()
        return not full.startswith(prompt) or (bool(reasoning) and reasoning not in full[len(prompt) :])

    def encode(self, text: str) -> list[int]:
        """Token ids of text that already carries its special tokens."""
        if self._fast is not None:
            ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
            return ids
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    # -- tokens -> message ----------------------------------------------------------------------------------------

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether a sampled turn ends with a stop token."""
        return bool(token_ids) and token_ids[-1] in self.stop_token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a sampled turn without its end-of-turn token; special tokens inside it stay visible."""
        return self._decode(token_ids[:-1] if self.ended(token_ids) else token_ids)

    def parse(
        self,
        token_ids: Sequence[int],
        *,
        tools: Tools = None,
        prompt_tail: Sequence[int] = (),
        stop: Sequence[str] = (),
    ) -> ParsedMessage:
        """A sampled turn as a message. Tool calls are looked for only when ``tools`` were offered.

        ``prompt_tail``: the last tokens before the turn, which tell whether the prompt opened a reasoning block.
        ``stop``: strings that ended it; the text is cut before the first.
        """
        return self.parse_text(self.decode(token_ids), tools=tools, prompt_tail=prompt_tail, stop=stop)

    def parse_text(
        self, text: str, *, tools: Tools = None, prompt_tail: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> ParsedMessage:
        """``parse`` for text that is already decoded."""
        for word in stop:
            text = text.partition(word)[0]
        reasoning, rest = None, text
        if self.splits_reasoning:
            reasoning, rest = split_reasoning(text, open_at_start=self.opens_reasoning(prompt_tail))
        if not tools:
            return ParsedMessage(rest or None, reasoning, text=text)
        content, calls, invalid = self._tool_parser.parse(rest, tools)
        return ParsedMessage(content or None, reasoning, calls, invalid, text)

    def tool_stream(self, tools: Tools) -> ToolCallStream:
        """A fresh incremental parser of one turn; everything is content when no tools were offered."""
        return self._tool_parser.stream(tools) if tools else PlainStream()

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return self._vocabulary_size

    @property
    def fast_tokenizer(self) -> Any:
        """The Rust tokenizer, None behind a slow one."""
        return self._fast

    def opens_reasoning(self, prompt_tail: Sequence[int]) -> bool:
        """Whether a prompt ends inside an open ``<think>`` block."""
        if not prompt_tail or not self.splits_reasoning:
            return False
        return self._decode(prompt_tail[-8:]).rstrip().endswith(THINK_OPEN)

    def token_text(self, token: int) -> str:
        """One token on its own, as ``logprobs`` entries show it."""
        return self._decode([token])

    # -- inside ---------------------------------------------------------------------------------------------------

    def _decode(self, token_ids: Sequence[int]) -> str:
        if self._fast is not None:
            text: str = self._fast.decode(list(token_ids), skip_special_tokens=False)
            return text
        return str(
            self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def _render(self, messages: list[dict[str, Any]], tools: Tools, prompt: bool, kwargs: Mapping[str, Any]) -> str:
        if reserved := _RESERVED & kwargs.keys():
            raise ChatFormatError(f"chat_template_kwargs may not contain {', '.join(sorted(reserved))}")
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=list(tools) if tools else None,
                chat_template=self._template,
                add_generation_prompt=prompt,
                tokenize=False,
                **kwargs,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            # Templates fail in all these ways on messages they were not written for; all are the request's doing.
            raise ChatFormatError(f"the chat template does not accept these messages: {error}") from error

    def _tail(
        self, reply: Message, new: list[dict[str, Any]], tools: Tools, prompt: bool, kwargs: Mapping[str, Any]
    ) -> str:
        """What the template writes after the marked end of ``reply``'s stand-in."""
        mark, refused = self._mark, None
        for stand_in in self._stand_ins(reply):
            try:
                text = self._render([{"role": "user", "content": "x"}, stand_in, *new], tools, prompt, kwargs)
            except ChatFormatError as error:
                refused = error
                continue
            _, found, tail = text.rpartition(mark)
            if found:
                return tail
        raise refused or ChatFormatError("the chat template leaves out the assistant's own turns")

    def _stand_ins(self, reply: Message) -> Iterator[dict[str, Any]]:
        """Messages of the reply's shape that end with the mark, most faithful first.

        Some templates want arguments as a string, and some know no tool calls at all.
        """
        mark, calls = self._mark, reply.get("tool_calls") or ()
        if calls:
            for arguments in ({mark: mark}, json.dumps({mark: mark})):
                marked = [
                    {
                        "id": call.get("id", ""),
                        "type": "function",
                        "function": {"name": call["function"]["name"], "arguments": arguments},
                    }
                    for call in calls
                ]
                yield {"role": "assistant", "content": "", "tool_calls": marked}
        yield {"role": "assistant", "content": mark}

    def _closing(self, reply: Message, new: Sequence[Message], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """(syntax between a turn's text and its end-of-turn token, that token's text), cached by shape."""
        shape = (bool(reply.get("tool_calls")), tuple(message["role"] for message in new), orjson.dumps(kwargs))
        found = self._closings.get(shape)
        if found is None:
            # Placeholders, because an end-of-turn token inside a tool result must not be taken for the turn's.
            blanks = [{**for_template(message), "content": "x"} for message in new]
            tail = self._tail(reply, blanks, None, True, kwargs)
            hits = [(at, text) for text in self._stop_texts if text and (at := tail.find(text)) >= 0]
            if hits:
                at, text = min(hits)
                found = (tail[:at], text)
            else:
                end = self._tail(reply, [], None, False, kwargs) if reply.get("tool_calls") else ""
                found = (end, "") if tail.startswith(end) else ("", "")
            if len(self._closings) > 1024:
                self._closings.clear()
            self._closings[shape] = found
        return found

    def _delta_needs_tools(self, tools: Tools, kwargs: Mapping[str, Any]) -> bool:
        if tools is not self._digested[0]:
            self._digested = (tools, tools_key(tools))
        key = (self._digested[1], orjson.dumps(kwargs))
        found = self._tools_in_delta.get(key)
        if found is None:
            reply = {"role": "assistant", "content": "x"}
            probe = [{"role": "user", "content": "x"}]
            found = self._tail(reply, probe, tools, True, kwargs) != self._tail(reply, probe, None, True, kwargs)
            if len(self._tools_in_delta) > 256:
                self._tools_in_delta.clear()
            self._tools_in_delta[key] = found
        return found
