"""The heart of the proxy: a request becomes tokens, the engine samples, the session remembers, a message returns."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.chat.format import ChatFormat, tools_key
from tau2_lightning.rollout.chat.hermes import HERMES
from tau2_lightning.rollout.chat.message import ParsedMessage
from tau2_lightning.rollout.engine.generation import Engine, Generation, SamplingParams
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Message, Node, Session

from .errors import APIError, invalid
from .grammar import Grammar, grammar_for
from .metrics import ProxyMetrics
from .request import ChatCall, chat_call, check_tools
from .settings import ProxySettings

_CACHED_TOOL_LISTS = 256


@dataclass
class Prepared:
    """A request ready to sample: its prompt tokens and where in the session they belong."""

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
    created: int

    @property
    def offered_tools(self) -> Sequence[Mapping[str, Any]] | None:
        """The tools whose calls are looked for in the answer."""
        return None if self.call.tool_choice.mode == "none" else self.call.tools


@dataclass(frozen=True)
class Choice:
    """One finished choice: its message as sent to the client, and what was sampled."""

    message: dict[str, Any]
    finish_reason: str
    generation: Generation


class ChatService:
    """Answers chat requests. One per proxy; holds no state of a conversation."""

    def __init__(
        self,
        store: SessionStore,
        chat_format: ChatFormat,
        engine: Engine,
        settings: ProxySettings,
        metrics: ProxyMetrics,
    ) -> None:
        self.store, self.format, self.engine, self.settings, self.metrics = (
            store,
            chat_format,
            engine,
            settings,
            metrics,
        )
        self._tools: OrderedDict[bytes, list[dict[str, Any]]] = OrderedDict()
        self._turn_ends = tuple(sorted(chat_format.stop_token_ids))

    def prepare(self, body: Mapping[str, Any], session: Session | None) -> Prepared:
        """Check a request and find its prompt. Raises APIError, ChatFormatError."""
        if session is not None and session.sampling:
            body = {**session.sampling, **body}
        call = chat_call(
            body,
            self.settings,
            lambda given: self.resolve_tools(given, session),
            session.chat_template_kwargs if session else {},
        )
        grammar = self._grammar(call, session)
        tools = call.tools
        if session is None and call.tool_choice.mode == "none":
            tools = None  # a plain client that wants no call need not show the functions
        setting = self._tools_key(tools, session) + orjson.dumps(call.template_kwargs, option=orjson.OPT_SORT_KEYS)
        parent, covered = session.match(call.messages, setting) if session else (None, 0)
        new = call.messages[covered:]
        if parent is not None and self.settings.history_policy == "branch":
            reply = {**parent.reply, **call.messages[covered - 1]}
            before = call.messages[: covered - 1]
            if self.format.rewrites_history(before, reply, new, tools, **call.template_kwargs):
                parent, new = None, call.messages
        if parent is None or session is None:
            delta = self.format.render(new, tools, **call.template_kwargs)
            prompt = delta
        else:
            delta = self.format.render_delta(parent.reply, new, ended=parent.ended, tools=tools, **call.template_kwargs)
            prompt = session.tokens(parent) + delta
        sampling = replace(
            call.sampling,
            max_tokens=self.budget(len(prompt), call.sampling.max_tokens),
            stop_token_ids=(() if call.sampling.ignore_eos else self._turn_ends) + call.sampling.stop_token_ids,
            structured=grammar.structured if grammar else None,
        )
        return Prepared(
            call, "chatcmpl-" + secrets.token_hex(12), prompt, delta, sampling, session, parent, new, setting, grammar,
            int(time.time()),
        )  # fmt: skip

    async def complete(self, work: Prepared) -> dict[str, Any]:
        """Sample every choice and answer with an OpenAI ``chat.completion`` object."""
        deadline = self.settings.request_timeout
        name = work.session.session_id if work.session else None
        if work.call.n == 1:
            results = [await self.engine.generate(work.prompt, work.sampling, session=name, deadline=deadline)]
        else:
            results = await self._sample_many(work, name, deadline)
        choices = [self.finish(work, generation, index) for index, generation in enumerate(results)]
        return {
            "id": work.completion_id,
            "object": "chat.completion",
            "created": work.created,
            "model": work.call.model,
            "choices": [
                {
                    "index": index,
                    "message": choice.message,
                    "finish_reason": choice.finish_reason,
                    "logprobs": self.logprobs(work.call, choice.generation),
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage(work, [choice.generation for choice in choices]),
        }

    async def _sample_many(self, work: Prepared, name: str | None, deadline: float) -> list[Generation]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self.engine.generate(
                        work.prompt, self.choice_sampling(work, index), session=name, deadline=deadline
                    )
                )
                for index in range(work.call.n)
            ]
        return [task.result() for task in tasks]

    def choice_sampling(self, work: Prepared, index: int) -> SamplingParams:
        """Sampling of one of ``n`` choices: with a seed, each choice has its own."""
        seed = work.sampling.seed
        return work.sampling if seed is None or index == 0 else replace(work.sampling, seed=seed + index)

    def finish(self, work: Prepared, generation: Generation, index: int = 0) -> Choice:
        """Parse what was sampled, record it, and phrase it for the client."""
        parsed = self.parse(work, generation)
        return self.record(work, generation, self.message(work, parsed, index), parsed.invalid_format)

    def record(self, work: Prepared, generation: Generation, message: dict[str, Any], invalid_format: bool) -> Choice:
        """Count a choice and, in a session, remember it. Raises InfrastructureFault when the engine gave up."""
        if generation.finish_reason == "abort":
            raise InfrastructureFault("engine", "aborted", "the engine gave up on this request")
        reason = "stop" if self._cut(work, generation) else generation.finish_reason
        if message.get("tool_calls") and reason == "stop":
            reason = "tool_calls"
        self.metrics.completion(len(generation.token_ids), reason, invalid_format)
        if work.session is not None:
            self._remember(work, generation, message, invalid_format)
        return Choice(message, reason, generation)

    def _cut(self, work: Prepared, generation: Generation) -> bool:
        """Whether a stop string ended the text. The engine can overlook one that lies across a special token."""
        if not work.sampling.stop:
            return False
        text = self.format.decode(generation.token_ids)
        return any(word in text for word in work.sampling.stop)

    def parse(self, work: Prepared, generation: Generation) -> ParsedMessage:
        parsed = self.format.parse(
            generation.token_ids,
            tools=work.offered_tools if work.grammar is None or work.grammar.native else None,
            prompt_tail=work.prompt[-8:],
            stop=work.sampling.stop,
        )
        return parsed if work.grammar is None else work.grammar.read(parsed)

    def message(self, work: Prepared, parsed: ParsedMessage, index: int = 0) -> dict[str, Any]:
        """The assistant message a client gets. Call ids are stable: completion, choice and position name them."""
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if parsed.reasoning_content is not None:
            message["reasoning_content"] = parsed.reasoning_content
        calls = parsed.tool_calls if work.call.parallel_tool_calls else parsed.tool_calls[:1]
        if calls:
            message["tool_calls"] = [
                {
                    "id": call_id(work.completion_id, index, at),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for at, call in enumerate(calls)
            ]
        elif parsed.content is None:
            message["content"] = ""
        return message

    def logprobs(self, call: ChatCall, generation: Generation) -> dict[str, Any] | None:
        """OpenAI's ``logprobs`` object, None when it was not asked for."""
        if call.top_logprobs is None:
            return None
        entries = []
        for at, (token, logprob) in enumerate(zip(generation.token_ids, generation.logprobs, strict=True)):
            entry = self._token(token, logprob)
            ranked = generation.top_logprobs[at] if at < len(generation.top_logprobs) else {}
            best = sorted(ranked.items(), key=lambda item: -item[1])[: call.top_logprobs]
            entry["top_logprobs"] = [self._token(other, value) for other, value in best]
            entries.append(entry)
        return {"content": entries, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.format.token_text(token)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}

    def _remember(self, work: Prepared, generation: Generation, message: dict[str, Any], invalid_format: bool) -> None:
        session = work.session
        assert session is not None
        if session.closed:
            raise APIError(409, "session_closed", f"session {session.session_id} closed while this was sampled")
        altered = work.grammar.name if work.grammar else work.sampling.altered(self.settings.temperature)
        node = Node(
            work.parent, work.new, message, work.delta, generation, work.completion_id, work.setting, invalid_format,
            self.format.ended(generation.token_ids), altered,
        )  # fmt: skip
        session.add(node, [*work.prompt, *generation.token_ids])

    def budget(self, prompt_tokens: int, asked: int) -> int:
        """How many tokens may be sampled: what was asked for, within the model's length and the proxy's cap."""
        room = self.engine.max_model_len - prompt_tokens
        if room < 1:
            raise APIError(
                400,
                "context_length_exceeded",
                # OpenAI's words: clients (litellm) recognise the error by them.
                f"This model's maximum context length is {self.engine.max_model_len} tokens. However, your messages "
                f"resulted in {prompt_tokens} tokens. Please reduce the length of the messages.",
                "messages",
            )
        return min(asked or room, room, self.settings.max_new_tokens)

    def _tools_key(self, tools: Sequence[Mapping[str, Any]] | None, session: Session | None) -> bytes:
        return session.tools_key if session is not None and tools is session.tools else tools_key(tools)

    def resolve_tools(self, given: Any, session: Session | None) -> Sequence[Mapping[str, Any]] | None:
        """A request's ``tools`` field, checked; the session's tools where it is absent. Raises APIError 400."""
        if given is None:
            return session.tools if session else None
        if not given:
            return None if given == [] else check_tools(given)
        try:
            key = tools_key(given)
        except TypeError as error:
            raise invalid("tools must be a list of tools", "tools") from error
        known = self._tools.get(key)
        if known is None:
            # One copy per distinct list, however many sessions send it every turn.
            known = self._tools[key] = check_tools(given)
            if len(self._tools) > _CACHED_TOOL_LISTS:
                self._tools.popitem(last=False)
        return known

    def _grammar(self, call: ChatCall, session: Session | None) -> Grammar | None:
        if session is not None and not self.settings.enforce_tool_choice:
            if call.response_format is not None:
                raise invalid(
                    "response_format needs rollout.enforce_tool_choice in a recorded session: it changes the "
                    "distribution that is learnt from",
                    "response_format",
                    "unsupported_parameter",
                )
            return None
        return grammar_for(call, hermes=self.format.tool_call_parser in HERMES)


def call_id(completion_id: str, choice: int, position: int) -> str:
    """Id of a tool call, the same for every reading of the same completion."""
    return f"call_{completion_id.removeprefix('chatcmpl-')}{choice:02x}{position:02x}"


def usage(work: Prepared, generations: Sequence[Generation]) -> dict[str, Any]:
    """OpenAI's ``usage`` object."""
    return usage_of(len(work.prompt), generations)


def usage_of(prompt: int, generations: Sequence[Generation]) -> dict[str, Any]:
    """``usage`` of ``generations`` sampled from ``prompt`` tokens."""
    sampled = sum(len(generation.token_ids) for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
        "prompt_tokens_details": {"cached_tokens": max((g.cached_tokens for g in generations), default=0)},
    }
