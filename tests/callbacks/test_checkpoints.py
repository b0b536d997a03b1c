"""The newest checkpoints are kept and older ones removed, over several starts and with writes in the background too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import orjson
import pytest
from torch.utils.data import DataLoader

from tau2_lightning.callbacks.checkpoints import NewestCheckpoints
from tau2_lightning.callbacks.retention import Retention
from tau2_lightning.launch.run_folder import META, RunFolder
from tau2_lightning.strategy import ArchonStrategy
from tests.strategy.lightning_job import OtherModule, Steps


def fit(
    root: Path, keep: int, epochs: int, *, every: int = 1, resume: bool = False, background: bool = False,
    **cadence: Any,
) -> None:  # fmt: skip
    """Three steps per epoch; the kept checkpoints are in the run's folder ``root``."""
    folder = RunFolder(root)
    checkpoints = NewestCheckpoints(folder, keep=keep, every_n_epochs=every, **cadence)
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1", async_save=background), accelerator="cpu", devices=1, max_epochs=epochs,
        callbacks=[checkpoints], logger=False, default_root_dir=root,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    resumed = folder.last_checkpoint() if resume else None
    trainer.fit(OtherModule(layers=1), DataLoader(Steps(), batch_size=None), ckpt_path=resumed)


def kept(root: Path) -> list[str]:
    return [path.stem for path in RunFolder(root).finished_checkpoints()]


@pytest.mark.parametrize("background", [False, True])
def test_exactly_the_newest_stay(tmp_path: Path, background: bool) -> None:
    fit(tmp_path, 3, 5, background=background)
    assert kept(tmp_path) == ["step15", "step12", "step9"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize(("keep", "left"), [(-1, ["step15", "step12", "step6"]), (0, []), (1, ["step15"])])
def test_all_none_or_one_and_the_end_of_training_in_any_case(tmp_path: Path, keep: int, left: list[str]) -> None:
    fit(tmp_path, keep, 5, every=2)
    assert kept(tmp_path) == left


def test_a_resumed_start_may_keep_another_number(tmp_path: Path) -> None:
    fit(tmp_path, 3, 3)
    fit(tmp_path, 2, 5, resume=True)
    assert kept(tmp_path) == ["step15", "step12", "step9"], "resumed from step9"
    fit(tmp_path, 2, 7, resume=True)
    assert kept(tmp_path) == ["step21", "step18", "step15"]


def test_by_steps_and_by_minutes_beside_the_epochs(tmp_path: Path) -> None:
    fit(tmp_path / "steps", -1, 3, every=9, every_n_steps=2)
    assert kept(tmp_path / "steps") == ["step9", "step8", "step6", "step4", "step2"], "and the end of training"
    fit(tmp_path / "minutes", -1, 1, every=9, every_n_minutes=1e-9)
    assert kept(tmp_path / "minutes") == ["step3", "step2", "step1"]
    fit(tmp_path / "hours", -1, 1, every=9, every_n_minutes=600.0)
    assert kept(tmp_path / "hours") == ["step3"]


def finished(root: Path, *steps: int) -> RunFolder:
    folder = RunFolder(root)
    for step in steps:
        path = folder.checkpoints / f"step{step}.ckpt"
        path.mkdir(parents=True)
        (path / META).write_bytes(b"")
        os.utime(path, (step, step))
    return folder


def score(version: int, value: float, *, macro: bool = False) -> dict[str, Any]:
    metrics = {"eval/macro/pass^1": value} if macro else {}
    metrics |= {f"eval/{name}/test/pass^1": value for name in ("a", "b")[: 1 + macro]}
    return {"weights_version": version, "metrics": metrics}


def test_the_best_by_validated_score_stays_and_is_named(tmp_path: Path) -> None:
    folder = finished(tmp_path, 1, 2, 3, 4, 5)
    retention = Retention(folder, keep=2)
    for step in range(1, 6):
        retention.saved(folder.checkpoints / f"step{step}.ckpt", step)
    retention.validated(score(2, 0.6))
    retention.validated(score(3, 0.5))
    retention.validated(score(9, 0.9))  # of weights that no checkpoint holds
    removed = retention.superfluous(folder.checkpoints / "step5.ckpt")
    assert [path.stem for path in removed] == ["step3", "step1"]
    assert orjson.loads((folder.root / "best.json").read_bytes())["checkpoint"] == "step2.ckpt"
    again = Retention(folder, keep=1)
    again.continues(folder.checkpoints / "step5.ckpt", 5)
    again.validated(score(5, 0.55, macro=True))
    again.saved(folder.checkpoints / "step6.ckpt", 6)
    left = {path.stem for path in again.superfluous(folder.checkpoints / "step6.ckpt")}
    assert left == {"step1", "step3", "step4"}, "the best of the start before stays, and the one resumed from"


def test_checkpoints_of_another_run_are_never_removed(tmp_path: Path) -> None:
    """As when a program of its own trains anew in a folder that is not empty."""
    folder = finished(tmp_path, 1, 2)
    retention = Retention(folder, keep=1)
    retention.continues(None, 0)
    finished(tmp_path, 7, 8)
    retention.saved(folder.checkpoints / "step7.ckpt", 7)
    retention.saved(folder.checkpoints / "step8.ckpt", 8)
    assert [path.stem for path in retention.superfluous(folder.checkpoints / "step8.ckpt")] == ["step7"]
