"""The main job that kills itself at a stated place: ``python -m tests.e2e.killed_job PLACE WORD...``.

The places are in the batch that the weights of version `AT` play, and in what follows it; ``nowhere`` is a negative
control.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import train
from tau2_lightning.callbacks.weight_sync import WeightSync
from tau2_lightning.module import GRPOModule
from tau2_lightning.rank_zero import RankZeroRollouts
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.sync_round import SyncRound
from tau2_lightning.run.exit import leave
from tau2_lightning.telemetry.finite import SkippedSteps

AT = 2
Place = Callable[[pytest.MonkeyPatch], None]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nowhere(patch: pytest.MonkeyPatch) -> None:
    """The run ends by itself."""


def before_the_first_rollout(patch: pytest.MonkeyPatch) -> None:
    """With the first request of the batch."""
    _generations(patch, "collect", 0)


def in_generation(patch: pytest.MonkeyPatch) -> None:
    """Some episodes are done, others are in the middle of a turn."""
    _generations(patch, "collect", 12)


def after_the_rollout(patch: pytest.MonkeyPatch) -> None:
    """The batch is complete, and nothing is trained."""
    _before(patch, GRPOModule, "training_step", lambda module, *_: module.weights_version == AT)


def in_the_backward(patch: pytest.MonkeyPatch) -> None:
    """In the backward of the batch's second optimizer step: the first has changed the weights."""
    stepped: list[bool] = []
    takes, loss = SkippedSteps.takes, GRPOModule._loss

    def took(steps: SkippedSteps, norm: Any, version: int) -> bool:
        stepped.extend([True] * (version == AT))
        return takes(steps, norm, version)

    def lossy(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
        if stepped:
            outputs.logprobs.register_hook(die)
        return loss(module, outputs, microbatch)

    patch.setattr(SkippedSteps, "takes", took)
    patch.setattr(GRPOModule, "_loss", lossy)


def after_the_optimizer_step(patch: pytest.MonkeyPatch) -> None:
    """The weights are new, and neither saved nor sent."""
    step = GRPOModule.training_step

    def stepped(module: GRPOModule, batch: Any, batch_idx: int) -> None:
        step(module, batch, batch_idx)
        if module.weights_version == AT + 1:
            die()

    patch.setattr(GRPOModule, "training_step", stepped)


def before_the_weight_sync(patch: pytest.MonkeyPatch) -> None:
    """The step is saved, its weights are not sent, and its numbers are not in the record."""
    _before(patch, WeightSync, "run", lambda _, trainer, module: module.weights_version == AT + 1)


def in_the_weight_sync(patch: pytest.MonkeyPatch) -> None:
    """The engine is paused and has the new tensors, under the old version."""
    deliver, steps = SyncRound.deliver, list[bool]()

    async def delivered(sync: SyncRound, call: Any) -> None:
        await deliver(sync, call)
        steps.extend([True] * (sync.version == AT + 1))
        if len(steps) == 2:  # the update is begun, its tensors are there
            die()

    patch.setattr(SyncRound, "deliver", delivered)


def in_the_save(patch: pytest.MonkeyPatch) -> None:
    """Half of the third checkpoint is on the disk: the second once more, after the validation."""
    from torch.distributed.checkpoint import FileSystemWriter

    write, saved = FileSystemWriter.write_data, list[str]()

    def written(writer: Any, *args: Any) -> Any:
        saved.append(str(writer.path))
        if len(saved) == AT + 1:
            (Path(writer.path) / "__0_0.distcp").write_bytes(b"half")
            die()
        return write(writer, *args)

    patch.setattr(FileSystemWriter, "write_data", written)


def in_the_validation(patch: pytest.MonkeyPatch) -> None:
    """Some episodes of the validation after the second batch are done."""
    _generations(patch, "evaluate", 6)


def _before(patch: pytest.MonkeyPatch, owner: type, name: str, when: Callable[..., bool]) -> None:
    right = getattr(owner, name)

    def method(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            die()
        return right(*args, **options)

    patch.setattr(owner, name, method)


def _generations(patch: pytest.MonkeyPatch, during: str, done: int) -> None:
    """Die at the first request after ``done`` others of the batch or validation were answered."""
    working, generate, counted = getattr(RankZeroRollouts, during), EnginePool.generate, list[bool]()
    here: list[bool] = []

    def work(rollouts: RankZeroRollouts, *args: Any) -> Any:
        here.extend([True] * (rollouts.version == AT))  # from now on: beside training, the batch may be complete
        return working(rollouts, *args)

    async def generated(pool: EnginePool, *args: Any, **options: Any) -> Any:
        if here and len(counted) >= done:
            die()
        found = await generate(pool, *args, **options)
        counted.extend([True] * bool(here))
        return found

    patch.setattr(RankZeroRollouts, during, work)
    patch.setattr(EnginePool, "generate", generated)


PLACES: dict[str, Place] = {
    place.__name__: place
    for place in (
        nowhere, before_the_first_rollout, in_generation, after_the_rollout, in_the_backward, after_the_optimizer_step,
        before_the_weight_sync, in_the_weight_sync, in_the_save, in_the_validation,
    )
}  # fmt: skip


if __name__ == "__main__":
    PLACES[sys.argv[1]](pytest.MonkeyPatch())
    leave(train.main(sys.argv[2:]))
