"""The parity guard on a real model in bfloat16: it finds planted faults, and raises nothing in a hundred honest syncs.

    pytest -m "e2e and slow" tests/e2e/test_parity_smollm2.py -s        # -s shows the statistics

The engine is a real vLLM server, the other side the trainer's own computation. docs/lab/real_model.md has the figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from torch import Tensor

from tau2_lightning.errors import ParityError
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.parity import ParityReport, Tolerance, check_parity, default_tolerance
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.strategy.lora import LoRASettings
from tests.e2e.real_model import RealTrainer, one_bucket, sampled_rows, smollm2, worst

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.asyncio(loop_scope="module")]

SYNCS = int(os.environ.get("PARITY_SYNCS", "100"))
NEW_TOKENS = 96
LR = 1e-5  # ten times that of conf/actor/hf.yaml, so that weights move further between two syncs than in a run
BFLOAT16 = default_tolerance("bfloat16", "bf16", on_cpu=True)
NEVER = Tolerance.largest(float("inf"))


class World:
    """One engine, one trainer, and rows that the policy sampled."""

    def __init__(self, pool: EnginePool, folder: Path, rows: list[GuardRows]) -> None:
        self.pool, self.folder, self.rows = pool, folder, rows
        self.trainer = RealTrainer(folder, lr=LR)
        self.publisher = WeightPublisher(pool)
        self.version = 0
        self.history: dict[int, dict[str, Tensor]] = {0: self.trainer.weights()}

    async def publish(self, weights: dict[str, Tensor], version: int | None = None) -> None:
        await self.publisher.publish(self.version if version is None else version, one_bucket(weights))

    async def compare(
        self, tolerance: Tolerance = BFLOAT16, *, trainer: RealTrainer | None = None, rows: int | None = None
    ) -> ParityReport:
        """The guard's comparison on the first ``rows`` rows (default: two, as a run does)."""
        chosen = self.rows[: rows or 2]
        guard = GuardRows([r for g in chosen for r in g.rows], [p for g in chosen for p in g.positions])
        expected = (trainer or self.trainer).logprobs(guard)
        return await check_parity(
            self.pool, guard.rows, expected, positions=guard.positions, tolerance=tolerance, version=self.version
        )

    async def is_found(self, name: str) -> ParityReport:
        """The guard raises on what the engine serves now; returns the statistics."""
        report = await self.compare(NEVER)
        say(fault=name, **statistics(report))
        with pytest.raises(ParityError, match="differ between engine and trainer"):
            await self.compare()
        return report


def statistics(report: ParityReport) -> dict[str, float]:
    return {name: round(getattr(report, name), 4) for name in ("mean", "p99", "max")} | {"tokens": report.tokens}


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder, log_path = smollm2(), tmp_path_factory.mktemp("real") / "engine.log"
    settings = EngineSettings(
        model_path=str(folder), dtype="bfloat16", max_model_len=2048, lora_rank=8, device="cpu", log_path=log_path
    )
    async with EnginePool(settings) as pool:
        made = World(pool, folder, await sampled_rows(pool, folder, NEW_TOKENS))
        yield made
        await made.publisher.close()


async def test_a_hundred_honest_syncs_raise_nothing(world: World) -> None:
    """Each step moves the weights; each sync is compared on a row sampled lately, with the tolerance of a run."""
    reports = []
    for version in range(1, SYNCS + 1):
        row = world.rows[version % len(world.rows)]
        assert world.trainer.step(row, 1.0 if version % 2 else -1.0) > 0
        world.version = version
        weights = world.trainer.weights()
        if SYNCS - version in (1, 2, 5, 10, 20, 50):
            world.history[version] = weights
        await world.publish(weights)
        world.rows = [row, *(other for other in world.rows if other is not row)]
        reports.append(await world.compare(rows=1))
        if version % 25 == 0:
            world.rows = await sampled_rows(world.pool, world.folder, NEW_TOKENS)
    spread = {name: [getattr(report, name) for report in reports] for name in ("mean", "p99", "max")}
    say(syncs=SYNCS, **{f"{name}/largest": worst(values) for name, values in spread.items()},
        **{f"{name}/average": round(sum(values) / len(values), 4) for name, values in spread.items()})  # fmt: skip
    moved = max(float((weights[name] - world.history[0][name]).abs().max()) for name in weights)
    assert moved > 10 * LR or SYNCS < 50, "the weights have to move"
    assert max(spread["mean"]) < BFLOAT16.mean / 1.5 and max(spread["p99"]) < BFLOAT16.p99 / 1.5, "no margin is left"


LAYER = "model.layers.15"


def scaled(weights: dict[str, Tensor]) -> None:
    """By half. 5 % of one layer's projection changes log-probs by less than rounding does, 30 % by the tolerance."""
    weights[f"{LAYER}.mlp.down_proj.weight"] *= 1.5


def noise(weights: dict[str, Tensor]) -> None:
    name = f"{LAYER}.mlp.down_proj.weight"
    weights[name] = (
        torch.randn_like(weights[name], dtype=torch.float32).mul_(weights[name].float().std()).to(weights[name].dtype)
    )


def swap(first: str, second: str, layers: range) -> Any:
    """A fused weight whose parts are permuted: the tensors have one shape, so every loader takes them."""

    def plant(weights: dict[str, Tensor]) -> None:
        for layer in layers:
            one, other = (f"model.layers.{layer}.{name}_proj.weight" for name in (first, second))
            weights[one], weights[other] = weights[other], weights[one]

    return plant


def transposed(weights: dict[str, Tensor]) -> None:
    name = f"{LAYER}.self_attn.o_proj.weight"  # square
    weights[name] = weights[name].T.contiguous()


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(noise, id="a wrong tensor"),
        pytest.param(scaled, id="a tensor half too large"),
        pytest.param(transposed, id="a transposed tensor"),
        pytest.param(swap("mlp.gate", "mlp.up", range(15, 16)), id="gate and up swapped in a layer"),
        pytest.param(swap("self_attn.k", "self_attn.v", range(15, 16)), id="k and v swapped in a layer"),
    ],
)
async def test_planted_faults_are_found(world: World, plant: Any, request: pytest.FixtureRequest) -> None:
    weights = world.trainer.weights()
    plant(weights)
    await world.publish(weights)
    await world.is_found(request.node.callspec.id)
    await world.publish(world.trainer.weights())
    await world.compare()  # the negative control: the same rows, with the right weights


async def test_a_stale_version_is_found_by_number(world: World) -> None:
    """Weights of a few steps ago differ by less than rounding, so their number tells."""
    await world.publish(world.trainer.weights(), version=world.version - 1)
    with pytest.raises(ParityError, match=f"serves weights of version {world.version - 1}, the trainer is at version"):
        await world.compare()
    await world.publish(world.trainer.weights())
    await world.compare()


async def test_stale_weights_under_the_new_number_show_from_a_distance(world: World) -> None:
    """The other way to be stale: the server took the number and not the weights. How many steps show?"""
    for version in sorted(world.history, reverse=True):
        await world.publish(world.history[version])
        report = await world.compare(NEVER)
        say(stale=world.version - version, **statistics(report), found=bool(BFLOAT16.exceeded(report)))
    before = world.trainer.weights()
    for group in world.trainer.optimizer.param_groups:
        group["lr"] = 1e-4
    for _ in range(10):
        world.trainer.step(world.rows[0], 1.0)
    await world.publish(world.trainer.weights())
    await world.compare()
    await world.publish(before)
    await world.is_found("weights of ten steps of 1e-4 ago")
    await world.publish(world.trainer.weights())


async def test_a_missing_layer_is_found(world: World) -> None:
    """A server that keeps the old weights of one layer: here after an update as large as a warm start makes."""
    old, weights = world.history[0], world.trainer.weights()
    moved = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if name.startswith(LAYER) and tensor.ndim == 2:  # the trainer's layer learned something large
            change = torch.randn(tensor.shape, generator=moved) * tensor.float().std() * 0.3
            world.trainer.compute.model.get_parameter(name).data.add_(change)
    complete = world.trainer.weights()
    await world.publish(complete)
    await world.compare()
    await world.publish({**complete, **{name: old[name] for name in old if name.startswith(LAYER)}})
    await world.is_found("a layer with its old weights")
    await world.publish(complete)


async def test_a_swapped_adapter_is_found(world: World, tmp_path: Path) -> None:
    trainer = RealTrainer(world.folder, lr=2e-4, lora=LoRASettings(8, 16.0))
    await world.publish(world.history[0])
    for number in (1, 2):
        for _ in range(5):
            trainer.step(world.rows[0], 1.0)
        trainer.compute.save_adapter(tmp_path / str(number))
    world.version += 1
    await world.publisher.publish_adapter(world.version, tmp_path / "2")
    say(fault=None, adapter="its own", **statistics(await world.compare(trainer=trainer)))
    await world.publisher.publish_adapter(world.version, tmp_path / "1")
    report = await world.compare(NEVER, trainer=trainer)
    say(fault="an older adapter", **statistics(report))
    with pytest.raises(ParityError):
        await world.compare(trainer=trainer)
