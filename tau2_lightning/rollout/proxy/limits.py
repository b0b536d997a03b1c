"""Limits on a request's head, in bytes and seconds; uvicorn itself has none."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import APIError

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30.0


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 to a request line and headers of more than ``MAX_HEAD_BYTES`` (checked after each read of the
    socket), 408 to those that take longer than ``HEAD_SECONDS``, and closes the connection.

    A kept-alive connection between two requests is not timed here: uvicorn's ``timeout_keep_alive`` does that.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._in_head, self._head_bytes = True, 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected: its first head is timed."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head, and time one that follows on a kept-alive connection."""
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(APIError(431, "headers_too_large", f"the headers take more than {MAX_HEAD_BYTES} bytes"))
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def on_message_begin(self) -> None:
        """httptools: a head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """httptools: a head has ended."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn: what has come is no HTTP. The answer has the form of every other error."""
        self._refuse(APIError(400, "invalid_http", "this is no HTTP request"))

    def _late(self) -> None:
        self._timer = None
        self._refuse(APIError(408, "request_timeout", f"no complete headers within {HEAD_SECONDS:g} s"))

    def _refuse(self, error: APIError) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        body = bytes(error.response().body)
        head = f"HTTP/1.1 {error.status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
