"""A fake vLLM with the real store of weights; its model is what ``/update_weights`` loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from safetensors.torch import load_file

from tau2_lightning.rollout.engine.in_vllm.names import WEIGHTS
from tau2_lightning.rollout.engine.in_vllm.private_folders import PrivateFolders
from tau2_lightning.rollout.engine.in_vllm.weight_routes import TakeWeights
from tau2_lightning.rollout.engine.in_vllm.weight_store import WeightStore
from tests.rollout.engine.fake_vllm import FakeVLLM


async def _nothing(*_: Any) -> None:
    raise AssertionError("a route of weights went on to vLLM")


class StoringVLLM(FakeVLLM):
    """``model`` has the tensors of the last complete update. ``routes`` counts requests to the store by route."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        super().__init__((number, 7, 8))
        self.folder = folder
        self.model: dict[str, torch.Tensor] = {}
        self.loading: dict[str, torch.Tensor] = {}
        self.routes: list[str] = []
        self.restart()

    def restart(self) -> None:
        """As a new process: an empty store."""
        self.taking = TakeWeights(_nothing)
        self.taking.store = WeightStore(PrivateFolders((self.folder,)))
        self.model = {}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if not request.path.startswith(WEIGHTS):
            answer = await super()._answer(request)
            if request.path == "/update_weights" and answer.status == 200:
                self.loading |= load_file((await request.json())["update_info"]["path"])
            if request.path == "/finish_weight_update":
                self.model, self.loading = self.loading, {}
            return answer
        route = request.path.removeprefix(WEIGHTS)
        self.routes.append(route)
        body: Any = await request.read()
        if behave := self.behave.get(route):
            changed = behave(request, body)
            changed = await changed if asyncio.iscoroutine(changed) else changed
            if isinstance(changed, web.Response):
                return changed
            body = body if changed is None else changed
        messages: list[Any] = [{"type": "http.request", "body": body}]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        query = request.query_string.encode()
        headers = [(b"content-length", request.headers.get("content-length", "0").encode())]
        scope = {"type": "http", "method": request.method, "path": request.path, "query_string": query}
        await self.taking({**scope, "headers": headers}, receive, send)
        return web.Response(status=sent[0]["status"], body=sent[1]["body"], content_type="application/json")
