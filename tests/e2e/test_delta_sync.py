"""Changes over HTTP into a real engine: its log-probs equal those of the same weights sent in full, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.sync_round import SyncReport
from tests.e2e.reference_models import VOCABULARY, ReferenceModels, engine_settings

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

Weights = dict[str, torch.Tensor]


def stepped(weights: Weights, seed: int) -> Weights:
    """The weights with one value in a hundred changed: in q, k, v, gate and up, which vLLM fuses, as everywhere."""
    torch.manual_seed(seed)
    return {name: t + 0.5 * t * (torch.rand_like(t) < 0.01) for name, t in weights.items()}


async def scores(pool: EnginePool) -> list[list[float]]:
    rows = [[random.Random(seed).randrange(VOCABULARY) for _ in range(length)] for seed, length in ((1, 40), (2, 300))]
    return [await pool.score(row, deadline=120) for row in rows]


async def published(publisher: WeightPublisher, version: int, weights: Weights) -> SyncReport:
    names = list(weights)
    buckets = [[(name, weights[name]) for name in names[:5]], [(name, weights[name]) for name in names[5:]]]
    return await publisher.publish(version, buckets, mode="keep")


async def full_then_three_deltas(pool: EnginePool, reference: ReferenceModels) -> None:
    weights: Weights = {name: tensor.clone() for name, tensor in reference.weights("A")}
    deltas, files = WeightPublisher(pool, sync_mode="delta"), WeightPublisher(pool, backend="shm")
    first = await published(deltas, 100, weights)
    assert first.bytes >= first.whole_bytes
    before = await scores(pool)
    for version in (101, 102, 103):
        weights = stepped(weights, version)
        report = await published(deltas, version, weights)
        assert report.fallbacks == 0 and report.bytes < 0.1 * report.whole_bytes
        by_delta = await scores(pool)
        await published(files, version, weights)
        assert by_delta == await scores(pool), f"version {version}"
        assert by_delta != before, "control: the changes must matter"
        before = by_delta
    await published(files, 104, dict(reference.weights("A")))
    assert await scores(pool) != before, "control: full weights must arrive by files too"
    await deltas.close()
    await files.close()


async def a_kill_between_two_deltas(pool: EnginePool, reference: ReferenceModels) -> None:
    weights: Weights = {name: tensor.clone() for name, tensor in reference.weights("B")}
    files = WeightPublisher(pool, backend="shm")
    deltas = WeightPublisher(pool, sync_mode="delta")  # made last: it is asked when an engine comes back
    await published(deltas, 200, weights)
    (member,) = pool.members
    assert member.server is not None
    member.server.kill()
    weights = stepped(weights, 201)
    report = await published(deltas, 201, weights)
    assert member.version == 201 and report.restarted == (member.name,)
    taken_up = await scores(pool)
    weights = stepped(weights, 202)
    report = await published(deltas, 202, weights)
    assert report.bytes < 0.1 * report.whole_bytes, "it follows by changes again"
    by_delta = await scores(pool)
    await published(files, 202, weights)
    assert by_delta == await scores(pool) != taken_up


async def test_in_the_tests_engine(engine_pool: EnginePool, reference: ReferenceModels) -> None:
    await full_then_three_deltas(engine_pool, reference)


@pytest.mark.slow
async def test_in_a_bfloat16_engine_from_float32_masters(reference: ReferenceModels, tmp_path: Path) -> None:
    async with EnginePool(engine_settings(reference, tmp_path / "engine.log", dtype="bfloat16")) as pool:
        await full_then_three_deltas(pool, reference)
        await a_kill_between_two_deltas(pool, reference)
