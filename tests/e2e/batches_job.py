"""The main job with its batches in files: ``python -m tests.e2e.batches_job keep|replay FOLDER WORD...``.

``keep`` writes every training batch to FOLDER. ``replay`` trains on the batches in FOLDER, without engine and episodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import train
from tau2_lightning.batch.batch import Batch
from tau2_lightning.rank_zero import RankZeroRollouts
from tau2_lightning.run.exit import leave
from tests.fake_service import FakeService


def batch_file(folder: Path, version: int) -> Path:
    """The file of the batch that the weights of ``version`` played."""
    return folder / f"batch-{version}.safetensors"


def keep(patch: pytest.MonkeyPatch, folder: Path) -> None:
    collect = RankZeroRollouts.collect

    def kept(rollouts: RankZeroRollouts, tasks: Any) -> Batch:
        batch = collect(rollouts, tasks)
        batch_file(folder, rollouts.version).write_bytes(batch.to_bytes())
        return batch

    patch.setattr(RankZeroRollouts, "collect", kept)


def replay(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def replayed(rollouts: RankZeroRollouts, tasks: Any) -> Batch:
        return Batch.from_bytes(batch_file(folder, rollouts.version).read_bytes())

    patch.setattr(RankZeroRollouts, "collect", replayed)
    patch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: FakeService())


DOES: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {"keep": keep, "replay": replay}

if __name__ == "__main__":
    DOES[sys.argv[1]](pytest.MonkeyPatch(), Path(sys.argv[2]))
    leave(train.main(sys.argv[3:]))
