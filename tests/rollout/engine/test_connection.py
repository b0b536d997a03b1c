"""A server whose code raises closes the connection after its answer, as vLLM's does: the next request needs another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tau2_lightning.launch.net import free_port
from tau2_lightning.rollout.engine.vllm_client import UNFINISHED, VLLMClient
from tests.rollout.proxy.rig import until


class HalfUpdated:
    """vLLM's routes of a weight update that a trainer has begun, and was killed."""

    def __init__(self) -> None:
        self.begun, self.calls = True, list[str]()

    async def start(self, request: Request) -> JSONResponse:
        self.calls.append("start")
        if self.begun:
            raise RuntimeError(f"start_weight_update called while {UNFINISHED}.")
        self.begun = True
        return JSONResponse({})

    async def finish(self, request: Request) -> JSONResponse:
        self.calls.append("finish")
        self.begun = False
        return JSONResponse({})

    async def answer(self, request: Request, error: Exception) -> JSONResponse:
        """vLLM's handler of exceptions; Starlette raises them again behind it, and uvicorn closes the connection."""
        return JSONResponse({"error": {"message": str(error)}}, 500)

    @property
    def app(self) -> Starlette:
        paths = {"/start_weight_update": self.start, "/finish_weight_update": self.finish}
        routes = [Route(path, call, methods=["POST"]) for path, call in paths.items()]
        return Starlette(routes=routes, exception_handlers={Exception: self.answer})


@pytest_asyncio.fixture
async def half_updated() -> AsyncIterator[tuple[HalfUpdated, VLLMClient]]:
    engine, port = HalfUpdated(), free_port("127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(engine.app, port=port, log_level="critical"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, 30.0)
    client = VLLMClient(f"http://127.0.0.1:{port}")
    yield engine, client
    await client.close()
    server.should_exit = True
    await serving


async def test_an_update_that_a_killed_trainer_began_is_ended_on_a_connection_of_its_own(
    half_updated: tuple[HalfUpdated, VLLMClient],
) -> None:
    engine, client = half_updated
    await client.begin_update()
    assert engine.begun and engine.calls == ["start", "finish", "start"]
