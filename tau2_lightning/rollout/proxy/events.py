"""Server-sent events that stop their source when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from .errors import APIError, as_api_error


class EventStream(Response):
    """A response of ``data:`` events, ended by ``[DONE]``.

    The first event is awaited before the status line is sent, so a request that fails immediately gets its proper
    status. ``on_error(error)`` runs before the client hears that there is no answer, ``on_close(gone)`` exactly once,
    at the end.
    """

    def __init__(
        self,
        events: AsyncGenerator[dict[str, Any], None],
        *,
        attach: Callable[[asyncio.Task[Any]], None],
        on_error: Callable[[BaseException], None],
        on_close: Callable[[bool], None],
    ) -> None:
        super().__init__()
        self._events, self._attach, self._on_error, self._on_close = events, attach, on_error, on_close
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; returns when all are sent, or the client has left, or the work was cancelled."""
        producer = asyncio.ensure_future(self._produce(send))
        watcher = asyncio.ensure_future(until_gone(receive))
        self._attach(producer)
        gone = False
        try:
            await asyncio.wait((producer, watcher), return_when=asyncio.FIRST_COMPLETED)
            gone = not producer.done()
            if not gone and producer.cancelled():
                await _fail(send, APIError(409, "session_aborted", "the session was aborted"), self._started)
            elif not gone:
                producer.result()
        except BaseException as error:
            self._on_error(error)
            raise
        finally:
            for task in (producer, watcher):
                task.cancel()
            await asyncio.wait((producer, watcher))
            self._on_close(gone)

    async def _produce(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    if not self._started:
                        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                        self._started = True
                    await send(_body(orjson.dumps(event)))
            except Exception as error:  # noqa: BLE001  # the client gets every failure as its last event
                self._on_error(error)
                await _fail(send, as_api_error(error), self._started)
                return
        await send(_body(b"[DONE]"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def _body(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


async def _fail(send: Callable[[Any], Awaitable[None]], error: APIError, started: bool) -> None:
    """Send ``error``: with its status before the answer has begun, as a last event after that."""
    if started:
        await send(_body(orjson.dumps(error.body)))
    else:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": orjson.dumps(error.body), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
