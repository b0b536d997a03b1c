"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from tau2_lightning.rollout.session.tree import Session

from .auth import Authenticator
from .body import read_object
from .chat import ChatService
from .completions import CompletionService
from .errors import APIError, invalid
from .events import EventStream, until_gone
from .schemas import CHAT_DOC, COMPLETION_DOC
from .stream import ChatStream


def openai_router(service: ChatService, auth: Authenticator) -> APIRouter:
    router = APIRouter(tags=["openai"])
    completions = CompletionService(service)

    @router.post("/v1/chat/completions", openapi_extra=CHAT_DOC)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation. With a session's key the answer is recorded in that session."""
        session = auth.caller(request).session
        body = await read_object(request, service.settings)
        desk = _Desk(service, request, session)
        async with desk:
            work = service.prepare(body, session)
            if work.call.stream:
                return desk.stream(ChatStream(service, work).chunks())
            return await desk.answer(service.complete(work))

    @router.post("/v1/completions", openapi_extra=COMPLETION_DOC)
    async def text_completions(request: Request) -> Response:
        """Continue a text or token ids. For plain clients only: a session records conversations."""
        if auth.caller(request).session is not None:
            raise invalid("a recorded session speaks /v1/chat/completions only", code="unsupported_in_session")
        body = await read_object(request, service.settings)
        desk = _Desk(service, request, None)
        async with desk:
            work = completions.prepare(body)
            if work.stream:
                return desk.stream(completions.chunks(work))
            return await desk.answer(completions.complete(work))

    return router


class _Desk:
    """One request at work: its session is busy until the answer is out, and its engine work ends with its client."""

    def __init__(self, service: ChatService, request: Request, session: Session | None) -> None:
        self._service, self._request, self._session = service, request, session
        self._streaming = False

    async def __aenter__(self) -> None:
        if self._session is not None:
            self._service.store.begin_call(self._session)

    async def __aexit__(self, *_: object) -> None:
        if not self._streaming:
            self._leave()

    def _leave(self, gone: bool = False) -> None:
        if gone:
            self._service.metrics.disconnects.inc()
        if self._session is not None:
            self._service.store.end_call(self._session)

    def _attach(self, task: asyncio.Task[Any]) -> None:
        if self._session is not None:
            self._service.store.attach(self._session, task)

    async def answer(self, work: Coroutine[Any, Any, Mapping[str, Any]]) -> Response:
        """Await ``work``; when the client leaves or the session is aborted, cancel it: the engine aborts it."""
        loop = asyncio.get_running_loop()
        task, gone = loop.create_task(work), loop.create_task(until_gone(self._request.receive))
        self._attach(task)
        # Not `asyncio.wait`, which looks at both for coroutines, at a tenth of what a short call costs.
        gone.add_done_callback(lambda _: task.cancel())
        try:
            return Response(orjson.dumps(await task), media_type="application/json")
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                raise
            if gone.done():
                self._service.metrics.disconnects.inc()
                return Response(status_code=499)  # nobody reads it; it only counts
            raise APIError(409, "session_aborted", "the session was aborted") from None
        finally:
            task.cancel()
            gone.cancel()

    def stream(self, events: AsyncGenerator[dict[str, Any], None]) -> Response:
        """Send ``events`` as they come; the session is busy until the last."""
        self._streaming = True
        return EventStream(events, attach=self._attach, on_close=self._leave)
