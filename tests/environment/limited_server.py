"""A user server that allows a number of calls in each window of time, and answers all others with 429."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate

from aiohttp import web

from tests.environment.local_server import running


class LimitedServer:
    """Serves ``limit`` calls per ``window`` seconds (fixed windows). ``header`` is the form of a refusal's Retry-After:
    ``seconds``, ``date`` (an HTTP date), or anything else for no header."""

    def __init__(self, limit: int, window: float, header: str = "seconds") -> None:
        self.limit, self.window, self.header = limit, window, header
        self.served = self.refused = self.open = self.most_open = 0
        self._started, self._in_window, self._number = time.monotonic(), 0, 0

    async def handle(self, request: web.Request) -> web.Response:
        await request.read()
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(0.005)
            return self._answer()
        finally:
            self.open -= 1

    def _answer(self) -> web.Response:
        elapsed = time.monotonic() - self._started
        number = int(elapsed // self.window) if self.window else 0
        if number != self._number:
            self._number, self._in_window = number, 0
        if self._in_window >= self.limit:
            self.refused += 1
            left = self.window * (number + 1) - elapsed if self.window else 1.0
            headers = {
                "seconds": {"Retry-After": f"{left:.2f}"},
                "date": {"Retry-After": formatdate(time.time() + left + 1.0, usegmt=True)},
            }.get(self.header, {})
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        self._in_window += 1
        self.served += 1
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "My phone is broken."},
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        return web.json_response(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )


@asynccontextmanager
async def limited(limit: int, window: float, header: str = "seconds") -> AsyncIterator[tuple[LimitedServer, str]]:
    server = LimitedServer(limit, window, header)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    async with running(app, backlog=512) as url:
        yield server, url
