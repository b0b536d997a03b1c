"""A server that stands in for a user model and can answer with failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.environment.local_server import running

Answer = dict[str, Any]


class UserServer:
    """An OpenAI-compatible server that gives the answers in order and keeps the requests."""

    def __init__(self, answers: list[Answer]) -> None:
        self.answers, self.requests = answers, []  # type: ignore[var-annotated]
        self.served = ["user-7b"]

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.served]})

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        answer = self.answers.pop(0)
        await asyncio.sleep(answer.get("delay", 0))
        if "status" in answer:
            return web.json_response({"error": {"message": "boom"}}, status=answer["status"])
        choice = {"index": 0, "finish_reason": "stop", "message": answer["message"]}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return web.json_response(body)


@asynccontextmanager
async def serving(*answers: Answer) -> AsyncIterator[tuple[UserServer, str]]:
    server = UserServer(list(answers))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_get("/v1/models", server.models)
    async with running(app) as url:
        yield server, url
