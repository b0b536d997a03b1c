"""The proxy called as the ASGI application it is, for episodes that live in its process.

Authentication, limits, sessions, errors and metrics are the application's, so they are the same as over HTTP; what is
left out is a socket and the writing and parsing of HTTP/1.1 on both of its ends, half of what a short call costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog
from starlette.types import ASGIApp

from tau2_lightning.errors import InfrastructureFault

log = structlog.get_logger(__name__)
_NOWHERE = ("in-process", 0)


async def post(app: ASGIApp, path: str, body: bytes, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bytes]:
    """POST ``body`` to ``path`` of ``app``; returns the status and the body of the answer. ``headers``: lower case.

    Cancelling it is a client that leaves: the handler is cancelled, and with it what the engine samples. Raises
    InfrastructureFault (``proxy``/``crash``) for whatever ``app`` raises: a server would answer it with a 500.
    """
    exchange = _Exchange(body)
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": list(headers),
        "server": _NOWHERE, "client": _NOWHERE,
    }  # fmt: skip
    try:
        await app(scope, exchange.receive, exchange.send)
    except Exception as error:
        log.exception("the proxy failed", path=path)
        raise InfrastructureFault("proxy", "crash", repr(error)) from error
    return exchange.status, b"".join(exchange.chunks)


class _Exchange:
    """One request and its answer."""

    def __init__(self, body: bytes) -> None:
        self.status = 0
        self.chunks: list[bytes] = []
        self._body: bytes | None = body

    async def receive(self) -> dict[str, Any]:
        if self._body is None:
            # This client stays until it is cancelled.
            await asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.chunks.append(message.get("body", b""))
