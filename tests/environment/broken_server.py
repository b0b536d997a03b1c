"""User servers that can be reached, but give no useful answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.environment.local_server import running

KINDS = ("500", "html", "no_choices", "hang", "401", "404", "429", "fine")


class BrokenServer:
    """Answers every chat completion in the way that ``kind`` names; ``asked`` counts the questions."""

    def __init__(self, kind: str) -> None:
        self.kind, self.asked = kind, 0

    async def handle(self, request: web.Request) -> web.Response:
        self.asked += 1
        match self.kind:
            case "hang":
                await asyncio.sleep(60)
            case "html":
                return web.Response(text="<html><body>Welcome to nginx!</body></html>", content_type="text/html")
            case "no_choices":
                return web.json_response({"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                                          "choices": []})  # fmt: skip
            case "fine":
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "OK"}}
                usage = {"prompt_tokens": 1_000_000, "completion_tokens": 1000, "total_tokens": 1_001_000}
                return web.json_response({"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                                          "choices": [choice], "usage": usage})  # fmt: skip
        return web.json_response({"error": {"message": "boom"}}, status=int(self.kind))

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "user-7b", "object": "model"}]})


@asynccontextmanager
async def broken(kind: str) -> AsyncIterator[tuple[BrokenServer, str]]:
    server = BrokenServer(kind)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_get("/v1/models", server.models)
    async with running(app) as url:
        yield server, url
