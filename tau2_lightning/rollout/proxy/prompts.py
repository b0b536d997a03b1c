"""From a request to a prompt: the recorded turn that it continues, and the tokens to sample from."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import orjson

from tau2_lightning.rollout.chat.byte_cache import ByteCache
from tau2_lightning.rollout.chat.form import MessageForm
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.message import Message, Tools, tools_key
from tau2_lightning.rollout.engine.generation import Engine, SamplingParams
from tau2_lightning.rollout.session.tree import Node, Session

from .calls import ChatCall, chat_call
from .errors import APIError, invalid
from .grammar import Grammar, grammar_for
from .settings import ProxySettings

TOOL_BYTES = 256 << 20
# The most that Python's objects take for one byte of JSON: `{},` is a dictionary of 64 bytes and a pointer to it.
BYTES_PER_JSON_BYTE = 24
# Two names of one limit: a request that gives either of them replaces both defaults.
_LENGTHS = ("max_tokens", "max_completion_tokens")


@dataclass
class Prepared:
    """A request ready to sample.

    ``prompt``: every token before the answer; ``delta``: those of them that no recorded turn has. ``parent``: the
    recorded turn that the request continues; ``new``: the messages after it. ``setting`` is a digest of the other
    inputs of the prompt (tools, template arguments). ``form``: the form of messages that the chat template takes.
    ``created``: seconds since the epoch.
    """

    call: ChatCall
    completion_id: str
    prompt: list[int]
    delta: list[int]
    sampling: SamplingParams
    session: Session | None
    parent: Node | None
    new: Sequence[Message]
    setting: bytes
    grammar: Grammar | None
    form: MessageForm
    created: int

    @property
    def offered_tools(self) -> Tools:
        """The tools whose calls are parsed from the answer."""
        return None if self.call.tool_choice.mode == "none" else self.call.tools

    @property
    def native_tools(self) -> Tools:
        """``offered_tools`` if the answer has the model's own call format, None where a grammar makes it JSON."""
        return self.offered_tools if self.grammar is None or self.grammar.native else None

    @property
    def prompt_tail(self) -> list[int]:
        """The end of the prompt, where a template may have opened a reasoning block."""
        return self.prompt[-8:]

    def call_id(self, choice: int, position: int) -> str:
        """Id of a tool call, the same for every reading of the same completion."""
        return self.form.call_id(f"call_{self.completion_id.removeprefix('chatcmpl-')}{choice:02x}{position:02x}")

    def choice_sampling(self, index: int) -> SamplingParams:
        """Sampling of one of ``n`` choices: with a seed, each choice has its own."""
        seed = self.sampling.seed
        return self.sampling if seed is None or index == 0 else replace(self.sampling, seed=seed + index)


class Prompts:
    """Prepares chat completion requests. Holds no state of a conversation."""

    def __init__(self, chat_format: ChatFormat, engine: Engine, settings: ProxySettings) -> None:
        self._format, self._engine, self._settings = chat_format, engine, settings
        self._tools: ByteCache[Sequence[Mapping[str, Any]]] = ByteCache(TOOL_BYTES)
        self._turn_ends = tuple(sorted(chat_format.stop_token_ids))

    def prepare(self, body: Mapping[str, Any], session: Session | None) -> Prepared:
        """Check a request and find its prompt. Raises APIError 400, ChatFormatError."""
        if session is not None and (session.sampling or session.fixed_sampling):
            body = with_defaults(body, session.sampling, session.fixed_sampling)
        tools, kwargs = (session.tools, session.chat_template_kwargs) if session else (None, {})
        defaults = tools, {**self._settings.template_kwargs, **kwargs}
        call = chat_call(body, self._settings, *defaults)
        grammar = self._grammar(call, session)
        tools, key = self._tools_of(call, session)
        words = orjson.dumps(call.template_kwargs, option=orjson.OPT_SORT_KEYS)
        setting = key + blake2b(words, digest_size=16).digest()  # a client's words may be long, and each turn keeps it
        parent, covered = self._continued(call, session, setting, tools)
        new = call.messages[covered:]
        if parent is None or session is None:
            prompt = delta = self._format.render(new, tools, **call.template_kwargs)
        else:
            delta = self._format.render_delta(
                parent.reply, new, ended=parent.ended, tools=tools, **call.template_kwargs
            )
            prompt = session.tokens(parent) + delta
        return Prepared(
            call=call,
            completion_id="chatcmpl-" + secrets.token_hex(12),
            prompt=prompt,
            delta=delta,
            sampling=replace(
                self._sampling(call, len(prompt), grammar), experts_from=self._experts_from(session, parent)
            ),
            session=session,
            parent=parent,
            new=new,
            setting=setting,
            grammar=grammar,
            form=self._format.form,
            created=int(time.time()),
        )

    def budget(self, prompt_tokens: int, wanted: int) -> int:
        """How many tokens may be sampled: those wanted (0: any number), within the model's length and the proxy's cap.

        Raises APIError 400 when the prompt fills the model's length.
        """
        length = self._engine.max_model_len
        room = length - prompt_tokens
        if room < 1:
            # OpenAI's wording: clients (litellm) recognise the error by it.
            problem = (
                f"This model's maximum context length is {length} tokens. However, your messages resulted in "
                f"{prompt_tokens} tokens. Please reduce the length of the messages."
            )
            raise invalid(problem, "messages", "context_length_exceeded")
        return min(wanted or room, room, self._settings.max_new_tokens)

    def shared_tools(self, tools: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], bytes]:
        """One copy per distinct tool list, however many sessions send it every turn, and its digest."""
        key = tools_key(tools)
        known = self._tools.get(key)
        if known is None:
            known = tools
            self._tools.put(key, tools, BYTES_PER_JSON_BYTE * len(orjson.dumps(tools)))
        return known, key

    @property
    def cached_bytes(self) -> dict[str, int]:
        """What the caches of requests hold now, by their names."""
        return {**self._format.cached_bytes, "tools": self._tools.held}

    def _tools_of(self, call: ChatCall, session: Session | None) -> tuple[Tools, bytes]:
        if session is None and call.tool_choice.mode == "none":
            return None, b""  # a plain client that wants no call need not show the functions
        if session is not None and call.tools is session.tools:
            return session.tools, session.tools_key
        return self.shared_tools(call.tools) if call.tools else (None, b"")

    def _continued(
        self, call: ChatCall, session: Session | None, setting: bytes, tools: Tools
    ) -> tuple[Node | None, int]:
        """The recorded turn that the request continues and how many messages it covers; (None, 0) for none."""
        if session is None:
            return None, 0
        parent, covered = session.match(call.messages, setting)
        if parent is not None and self._settings.history_policy == "branch":
            before, new = call.messages[: covered - 1], call.messages[covered:]
            if self._format.rewrites_history(before, parent.reply, new, tools, **call.template_kwargs):
                return None, 0
        return parent, covered

    def _sampling(self, call: ChatCall, prompt_tokens: int, grammar: Grammar | None) -> SamplingParams:
        given = call.sampling
        return replace(
            given,
            max_tokens=self.budget(prompt_tokens, given.max_tokens),
            stop_token_ids=(() if given.ignore_eos else self._turn_ends) + given.stop_token_ids,
            structured=grammar.structured if grammar else None,
        )

    def _experts_from(self, session: Session | None, parent: Node | None) -> int | None:
        """The first position without recorded experts: the last token of ``parent``, which was not computed yet."""
        if session is None or not self._settings.return_routed_experts:
            return None
        return 0 if parent is None else parent.sampled.end - 1

    def _grammar(self, call: ChatCall, session: Session | None) -> Grammar | None:
        if session is None or self._settings.enforce_tool_choice:
            return grammar_for(call, self._format.tool_parser.structural_tag)
        if call.response_format is not None:
            problem = (
                "response_format needs rollout.enforce_tool_choice in a recorded session: it changes the "
                "distribution that is learnt from"
            )
            raise APIError(400, "unsupported_parameter", problem, "response_format")
        return None


def with_defaults(body: Mapping[str, Any], sampling: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` over the session's defaults ``sampling``; the fields of ``fixed`` replace those of both."""
    whole: dict[str, Any] = {}
    for stronger in (sampling, body, fixed):
        given = {key: value for key, value in stronger.items() if value is not None}  # null: not given
        if not given.keys().isdisjoint(_LENGTHS):
            whole = {key: value for key, value in whole.items() if key not in _LENGTHS}
        whole |= given
    return whole
