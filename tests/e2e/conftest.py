"""One real engine for the whole end-to-end session: a tiny random Qwen3 served by vLLM.

With two processes (``-n 2 --dist loadgroup``) the tests of that engine run in one of them, one after the other; the
other takes the files whose tests start engines and programs of their own. Both mostly wait for imports on one core.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tau2_lightning.rollout.engine.pool import EnginePool
from tests.e2e.reference_models import ReferenceModels, engine_settings


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            shared = "engine_pool" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("engine" if shared else item.path.stem))


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
