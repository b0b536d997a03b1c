"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import request_response

from .auth import bearer_key
from .body import read_object
from .chat_service import CHAT_ROUTE, ChatService
from .chat_stream import ChatStream
from .completions import CompletionService
from .errors import APIError, invalid
from .events import EventStream, until_gone
from .meter import CLIENT_GONE, client_gone
from .openapi import CHAT_DOC, TEXT_DOC
from .session_call import SessionCall


class PlainRoute(APIRoute):
    """A documented FastAPI route that is called as a plain Starlette route: a request in, a response out.

    The handlers here use none of FastAPI's dependencies, parameters and response models, which take 40 of the 440
    microseconds of CPU of a short call to the application.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.app = request_response(self.endpoint)


def openai_router(service: ChatService) -> APIRouter:
    """The routes of OpenAI's clients that sample."""
    router = APIRouter(tags=["openai"], route_class=PlainRoute)
    completions = CompletionService(service)

    @router.post(CHAT_ROUTE, openapi_extra=CHAT_DOC)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation. With a session's key the answer is recorded in that session."""
        try:
            session = service.auth.caller(request).session
        except APIError as error:
            service.refused(bearer_key(request), error)
            raise
        async with _HttpCall(service, request, SessionCall(service.store, session)) as call:
            body = await read_object(request, service.settings)
            work = service.prepare(body, session)
            call.asks(work.call.messages, work.completion_id)
            if work.call.stream:
                return call.stream(ChatStream(service, work).chunks())
            return await call.answer(service.complete(work))

    @router.post("/v1/completions", openapi_extra=TEXT_DOC)
    async def text_completions(request: Request) -> Response:
        """Continue a text or token ids. For plain clients only: a session records conversations."""
        if service.auth.caller(request).session is not None:
            raise invalid("a recorded session speaks /v1/chat/completions only", code="unsupported_in_session")
        body = await read_object(request, service.settings)
        async with _HttpCall(service, request, SessionCall(service.store, None)) as call:
            work = completions.prepare(body)
            if work.stream:
                return call.stream(completions.chunks(work))
            return await call.answer(completions.complete(work))

    return router


class _HttpCall:
    """A running request over HTTP: its session is busy until the answer is sent, its work is cancelled when the client
    leaves."""

    def __init__(self, service: ChatService, request: Request, call: SessionCall) -> None:
        self._service, self._request, self._call = service, request, call
        self._streaming = False

    async def __aenter__(self) -> _HttpCall:
        self._call.begin()
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not self._streaming:
            self._call.end(error)

    def asks(self, messages: Sequence[Mapping[str, Any]], completion_id: str) -> None:
        """The request asks for an answer to ``messages``, which gets ``completion_id``."""
        self._call.asks(messages, completion_id)

    async def answer(self, work: Coroutine[Any, Any, Mapping[str, Any]]) -> Response:
        """The result of ``work`` as JSON. Raises as ``SessionCall.finished`` does."""
        gone = asyncio.get_running_loop().create_task(until_gone(self._request.receive))
        try:
            return Response(orjson.dumps(await self._call.finished(work, gone)), media_type="application/json")
        except APIError as error:
            if error.status == CLIENT_GONE:
                self._service.metrics.disconnects.inc()
            raise
        finally:
            gone.cancel()

    def stream(self, events: AsyncGenerator[dict[str, Any], None]) -> Response:
        """Send ``events`` as they come; the session is busy until the last."""
        self._streaming = True
        return EventStream(events, attach=self._call.attach, on_error=self._call.failed, on_close=self._closed)

    def _closed(self, gone: bool) -> None:
        if gone:
            self._service.metrics.disconnects.inc()
        self._call.end(client_gone() if gone else None)
