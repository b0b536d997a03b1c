"""The OpenAI surface: chat completions (text completions, models and health live beside it)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from .proxy_auth import Authenticator
from .proxy_body import read_object
from .proxy_chat import ChatService
from .proxy_errors import APIError
from .sessions import Session


class ClientGone(Exception):
    """The client closed its connection before its answer was ready."""


async def unless_disconnected(
    request: Request, work: Coroutine[Any, Any, Any], service: ChatService, session: Session | None
) -> Any:
    """Await ``work``; cancel it (which aborts it in the engine) when the client goes away or its session is aborted.

    Raises ClientGone, or APIError 409 for an aborted session.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    if session is not None:
        service.store.attach(session, task)
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.cancelled():
            raise APIError(409, "session_aborted", f"the session was aborted: {session.aborted if session else ''}")
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def openai_router(service: ChatService, auth: Authenticator) -> APIRouter:
    router = APIRouter()
    settings, store = service.settings, service.store

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        session = auth.caller(request).session
        body = await read_object(request, settings)
        if session is None:
            return await answer(request, body, None)
        store.begin_call(session)
        try:
            return await answer(request, body, session)
        finally:
            store.end_call(session)

    async def answer(request: Request, body: dict[str, Any], session: Session | None) -> Response:
        work = service.prepare(body, session)
        try:
            result = await unless_disconnected(request, service.complete(work), service, session)
        except ClientGone:
            service.metrics.disconnects.inc()
            return Response(status_code=499)
        return Response(orjson.dumps(result), media_type="application/json")

    return router
