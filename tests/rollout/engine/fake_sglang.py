"""A scripted fake of SGLang's HTTP server, for fault injection only: `make test-sglang` tests the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tests.rollout.engine.fake_vllm import Behaviour, FakeVLLM


class FakeSGLang(FakeVLLM):
    """Answers ``tokens`` to every prompt. It keeps the rules of the real one that a client can break: updates happen
    between begin and end, an adapter's name is loaded once, and a version ends all requests unless told otherwise."""

    def __init__(self, tokens: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__(tokens)
        self.updating = False
        self.adapters: set[str] = set()
        self.aborted = asyncio.Event()
        self.behave: dict[str, Behaviour] = {}
        for path, answer in ROUTES.items():
            self.behave[path] = answer.__get__(self)

    def answer(self, tokens: tuple[int, ...] | None = None, reason: str | None = "stop") -> dict[str, Any]:
        """The body of SGLang's answer to a generate request."""
        tokens = self.tokens if tokens is None else tokens
        meta: dict[str, Any] = {"prompt_tokens": 4, "cached_tokens": 1, "completion_tokens": len(tokens)}
        meta["output_token_logprobs"] = [[-0.5, token, None] for token in tokens]
        meta["finish_reason"] = reason and {"type": reason}
        meta["weight_versions"] = [{"version": self.version, "start": 0, "end": len(tokens)}]
        return {"output_ids": list(tokens), "meta_info": meta}

    def _generate(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        answer = self.answer()
        if body.get("logprob_start_len") == 0:
            first, *rest = body["input_ids"]
            entries = [[None, first, None], *([-0.25, token, None] for token in rest)]
            answer["meta_info"]["input_token_logprobs"] = entries
        return web.json_response(answer)

    def _begin(self, request: web.Request, body: Any) -> web.Response:
        if self.updating:
            return web.json_response({"success": False, "message": "already updating"}, status=400)
        self.updating = True
        return web.json_response({"success": True})

    def _end(self, request: web.Request, body: Any) -> web.Response:
        self.updating = False
        return web.json_response({"success": True})

    def _update(self, request: web.Request, body: Any) -> web.Response | None:
        return None if self.updating else web.json_response({"message": "no update begun"}, status=400)

    def _set_version(self, request: web.Request, body: Any) -> web.Response:
        if body.get("abort_all_requests", True):
            self.aborted.set()
        self.version = body["new_version"]
        return web.json_response({"success": True})

    def _load_adapter(self, request: web.Request, body: Any) -> web.Response:
        if body["lora_name"] in self.adapters:
            return web.json_response({"success": False}, status=400)
        self.adapters.add(body["lora_name"])
        return web.json_response({"success": True})

    def _unload_adapter(self, request: web.Request, body: Any) -> web.Response:
        self.adapters.remove(body["lora_name"])
        return web.json_response({"success": True})

    def _server_info(self, request: web.Request, body: Any) -> web.Response:
        return web.json_response({"tp_size": 1})


ROUTES: dict[str, Any] = {
    "/generate": FakeSGLang._generate,
    "/begin_weight_update": FakeSGLang._begin,
    "/end_weight_update": FakeSGLang._end,
    "/update_weights_from_disk": FakeSGLang._update,
    "/update_weights_from_tensor": FakeSGLang._update,
    "/update_weights_from_distributed": FakeSGLang._update,
    "/update_weight_version": FakeSGLang._set_version,
    "/load_lora_adapter": FakeSGLang._load_adapter,
    "/unload_lora_adapter": FakeSGLang._unload_adapter,
    "/server_info": FakeSGLang._server_info,
}


@asynccontextmanager
async def serving(*tokens: tuple[int, ...]) -> AsyncIterator[list[FakeSGLang]]:
    """Running servers, one for each of ``tokens``, its answer."""
    made = [await FakeSGLang(answer).start() for answer in tokens]
    try:
        yield made  # type: ignore[misc]
    finally:
        for server in made:
            await server.stop()


@asynccontextmanager
async def pool_of(servers: Sequence[FakeSGLang], model: Path) -> AsyncIterator[EnginePool]:
    """A pool of ``servers`` that serve ``model``; what it asked them at its start is forgotten."""
    urls = tuple(server.url for server in servers)
    async with EnginePool(EngineSettings(backend="sglang", urls=urls, model_path=str(model))) as made:
        for server in servers:
            server.calls.clear()
            server.bodies.clear()
        yield made
