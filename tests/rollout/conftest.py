"""Fixtures: two fake vLLM servers and a pool of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tests.rollout.engine.fake_vllm import FakeVLLM


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[FakeVLLM]]:
    """Running servers; the first token of an answer is the server's number, from 1."""
    made = [await FakeVLLM((index, 7, 8)).start() for index in (1, 2)]
    yield made
    for server in made:
        await server.stop()


@pytest_asyncio.fixture
async def pool(servers: list[FakeVLLM]) -> AsyncIterator[EnginePool]:
    """A started pool of ``servers``."""
    async with EnginePool(EngineSettings(urls=tuple(server.url for server in servers))) as made:
        yield made
