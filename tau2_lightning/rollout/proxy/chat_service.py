"""Chat completions: a request becomes a prompt, the engine samples, the session records the turn, a message returns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.generation import Engine, Generation
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Session

from .answers import completion
from .auth import Authenticator
from .errors import APIError, as_api_error, fault_behind, invalid
from .meter import CLIENT_GONE, RequestMeter, client_gone
from .metrics import ProxyMetrics
from .prompts import Prepared, Prompts
from .session_call import SessionCall
from .settings import ProxySettings
from .turns import Turns

CHAT_ROUTE = "/v1/chat/completions"


class ChatService:
    """Answers chat requests. One per proxy; holds no state of a conversation.

    Its ``auth``, ``meter`` and ``metrics`` are those of every request to the proxy: a request that comes over HTTP and
    one that ``answer`` takes inside the process are refused and counted alike.
    """

    def __init__(self, store: SessionStore, chat_format: ChatFormat, engine: Engine, settings: ProxySettings) -> None:
        self.store, self.format, self.engine, self.settings = store, chat_format, engine, settings
        self.prompts = Prompts(chat_format, engine, settings)
        self.metrics = ProxyMetrics(store, lambda: self.prompts.cached_bytes)
        self.auth = Authenticator(store, settings)
        self.meter = RequestMeter(self.metrics, settings.max_concurrent, settings.max_held_bytes)
        self.turns = Turns(chat_format, self.metrics, settings.temperature)

    async def answer(self, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The ``chat.completion`` object that answers ``body``, for a caller in this process who holds ``key``.

        Neither ``body`` nor the result shares anything with what the session records, as if both had been serialised.
        The size of ``body`` has no limit here, because it is in this process already; a prompt longer than the model
        is refused as always. Every failure is counted and raised as an APIError.
        """
        with self.meter.measure(CHAT_ROUTE) as request:
            try:
                result = await self._answer(key, body)
            except asyncio.CancelledError:
                request.status = CLIENT_GONE
                self.metrics.disconnects.inc()
                raise
            except Exception as error:  # noqa: BLE001  # every failure is counted and raised as an APIError
                problem = as_api_error(error)
                request.status = problem.status
                raise problem from (None if problem is error else error)
            request.status = 200
            return result

    async def _answer(self, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        session = self._admitted(key)
        own = _own(body)
        call = SessionCall(self.store, session)
        call.begin()
        try:
            work = self._prepare_direct(own, session)
            call.asks(work.call.messages, work.completion_id)
            if work.call.stream:
                raise invalid("a stream needs HTTP", "stream", "unsupported_parameter")
            # Only the new messages are kept. Copying them takes 3 microseconds, copying a whole history of 34 messages
            # takes 60.
            work.new = _copied(work.new)
            result: dict[str, Any] = orjson.loads(orjson.dumps(await call.finished(self.complete(work))))
        except BaseException as error:
            # In this process nobody but the caller breaks a call off.
            call.end(client_gone() if isinstance(error, asyncio.CancelledError) else error)
            raise
        call.end()
        return result

    def _admitted(self, key: str) -> Session | None:
        try:
            self.meter.admit()
            return self.auth.caller_with(key).session
        except APIError as error:
            self.refused(key, error)
            raise

    def refused(self, key: str, error: APIError) -> None:
        """Note in the session of ``key`` that one of its requests was refused before the session took it."""
        if (fault := fault_behind(error)) is not None:
            self.store.refused(key, fault)

    def _prepare_direct(self, body: Mapping[str, Any], session: Session | None) -> Prepared:
        """`prepare` of a body that was never JSON. Raises APIError 400 for what JSON cannot hold, as HTTP does."""
        try:
            return self.prepare(body, session)
        except (TypeError, UnicodeError) as error:
            try:
                orjson.dumps(body["messages"])
            except TypeError as problem:
                raise invalid(f"the body is not JSON: {problem}", code="invalid_json") from error
            raise

    def prepare(self, body: Mapping[str, Any], session: Session | None) -> Prepared:
        """Check a request and find its prompt. Raises APIError 400, ChatFormatError."""
        return self.prompts.prepare(body, session)

    async def complete(self, work: Prepared) -> dict[str, Any]:
        """Sample every choice and answer with an OpenAI ``chat.completion`` object.

        Raises InfrastructureFault and, when the session closed meanwhile, APIError 409.
        """
        if work.call.n == 1:
            generations = [await self._sample(work, 0)]
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sample(work, index)) for index in range(work.call.n)]
            generations = [task.result() for task in tasks]
        choices = [self.turns.finish(work, generation, index) for index, generation in enumerate(generations)]
        return completion(work, choices, self.format)

    async def _sample(self, work: Prepared, index: int) -> Generation:
        name = work.session.session_id if work.session else None
        deadline = self.settings.request_timeout
        began = time.perf_counter()
        sampled = await self.engine.generate(work.prompt, work.choice_sampling(index), session=name, deadline=deadline)
        return replace(sampled, seconds=time.perf_counter() - began)


def _own(body: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` with copies of everything but its messages. Raises APIError 400 for what is not JSON."""
    rest = {key: value for key, value in body.items() if key != "messages"}
    return {**_copied(rest), "messages": body.get("messages")}


def _copied(value: Any) -> Any:
    try:
        return orjson.loads(orjson.dumps(value))
    except TypeError as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from error
