"""A scripted fake of vLLM's HTTP server, for fault injection only: tests/e2e tests the real vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

Behaviour = Callable[[web.Request, dict[str, Any]], Any]


class FakeVLLM:
    """Answers ``tokens`` to every prompt; ``calls`` lists the requested paths, ``behave`` may replace an answer."""

    def __init__(self, tokens: tuple[int, ...] = (1, 2, 3)) -> None:
        self.tokens = tokens
        self.version: str | None = "default"
        self.calls: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.behave: dict[str, Behaviour] = {}
        self.url = ""
        self.inflight = 0
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> FakeVLLM:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        return self

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    def answer(self, tokens: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The body of vLLM's answer to a generate request."""
        tokens = self.tokens if tokens is None else tokens
        content = [{"token_id": token, "logprob": -0.5, "rank": 1, "top_logprobs": []} for token in tokens]
        spans = [{"version": self.version, "start": 0, "end": len(tokens)}]
        choice = {"index": 0, "token_ids": list(tokens), "finish_reason": "stop", "logprobs": {"content": content}}
        return {"choices": [{**choice, "weight_versions": spans}], "usage": {"prompt_tokens": 4}}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = orjson.loads(raw) if raw else {}
        if request.path != "/health":
            self.calls.append(request.path)
            self.bodies.append(body)
        self.inflight += 1
        try:
            if behave := self.behave.get(request.path):
                answer = behave(request, body)
                answer = await answer if asyncio.iscoroutine(answer) else answer
                if answer is not None:
                    return answer
            if request.path == "/inference/v1/generate":
                return web.json_response(self.answer())
            if request.path == "/v1/models":
                return web.json_response({"data": [{"id": "policy", "max_model_len": 1000}]})
            if request.path in ("/finish_weight_update", "/update_weight_version"):
                self.version = body.get("weight_version") or body.get("new_version")
            return web.json_response({"success": True})
        finally:
            self.inflight -= 1
