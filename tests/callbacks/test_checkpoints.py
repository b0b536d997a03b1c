"""The newest checkpoints are kept and older ones removed, over several starts and with writes in the background too."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from torch.utils.data import DataLoader

from tau2_lightning.callbacks.checkpoints import NewestCheckpoints
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.strategy import ArchonStrategy
from tests.strategy.lightning_job import OtherModule, Steps


def fit(root: Path, keep: int, epochs: int, *, every: int = 1, resume: bool = False, background: bool = False) -> None:
    """Three steps per epoch; the kept checkpoints are in the run's folder ``root``."""
    folder = RunFolder(root)
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1", async_save=background), accelerator="cpu", devices=1, max_epochs=epochs,
        callbacks=[NewestCheckpoints(folder, keep=keep, every_n_epochs=every)], logger=False, default_root_dir=root,
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
