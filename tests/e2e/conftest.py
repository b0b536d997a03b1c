"""One real engine for the whole end-to-end session: a tiny random Qwen3 served by vLLM."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tau2_lightning.rollout.engine.pool import EnginePool
from tests.e2e.reference_models import ReferenceModels, engine_settings


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModels:
    """Both reference policies, in float32."""
    return ReferenceModels(tmp_path_factory.mktemp("policies"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine_pool(
    reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EnginePool]:
    """A running pool of one engine; after a test it serves the weights that the test published last."""
    log_path = tmp_path_factory.mktemp("engine") / "engine.log"
    async with EnginePool(engine_settings(reference, log_path)) as pool:
        yield pool
