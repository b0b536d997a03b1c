"""A real engine at the deadline of a completion: the tokens sampled until then come back as the policy's turn."""

from __future__ import annotations

import time

import pytest

from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.statistics import read_metrics
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.e2e.reference_models import ReferenceModels
from tests.e2e.test_engine import TOLERANCE, differences, random_row

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

ENDLESS = SamplingParams(max_tokens=3000, ignore_eos=True)


@pytest.mark.parametrize("stop", [(), ("never written",)], ids=["short path", "vLLM's route"])
async def test_what_was_sampled_is_kept_token_by_token(
    engine_pool: EnginePool, reference: ReferenceModels, stop: tuple[str, ...]
) -> None:
    await WeightPublisher(engine_pool).publish(5, reference.buckets("B"))
    prompt = random_row(50, seed=2)
    await engine_pool.generate(prompt, SamplingParams(max_tokens=2), deadline=60)
    before, began = engine_pool.cut_off, time.monotonic()
    sampling = SamplingParams(max_tokens=3000, ignore_eos=True, stop=stop)
    found = await engine_pool.generate(prompt, sampling, deadline=2.0)
    assert time.monotonic() - began < 4.5 and engine_pool.cut_off == before + 1
    assert (found.finish_reason, found.cut) == ("length", True) and 1 < len(found.token_ids) < 3000
    assert len(found.logprobs) == len(found.token_ids) and set(found.versions) == {5}
    assert max(await differences(reference, "B", prompt, found)) < TOLERANCE


async def test_an_ended_request_leaves_the_engine_free(engine_pool: EnginePool) -> None:
    client = engine_pool.members[0].client
    await engine_pool.generate(random_row(50, seed=3), ENDLESS, deadline=1.0)
    reading = None
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        reading = read_metrics(await client.metrics(5.0))
        assert reading is not None
        if not reading.gauges["running"]:
            break
    assert reading is not None and reading.gauges["running"] == reading.gauges["queue"] == 0
    assert reading.counters["prefix_queries"] > 0 and "preemptions" in reading.counters
