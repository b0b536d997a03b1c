"""Fixtures: two fake SGLang servers and a pool of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tau2_lightning.rollout.engine.pool import EnginePool
from tests.rollout.engine.fake_sglang import FakeSGLang, pool_of, serving

CONFIG = {"vocab_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "dtype": "bfloat16"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the configuration of a model of 100 token ids."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[FakeSGLang]]:
    async with serving((1, 7, 8), (2, 7, 8)) as made:
        yield made


@pytest_asyncio.fixture
async def pool(servers: list[FakeSGLang], model: Path) -> AsyncIterator[EnginePool]:
    async with pool_of(servers, model) as made:
        yield made
