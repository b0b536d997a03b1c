"""Checkpoints of adapters: small, resumable, and only on the base model they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.lora import LoRASettings
from tests.strategy.lightning_job import OtherModule, Steps
from tests.strategy.tiny import tiny_model

SETTINGS = LoRASettings(4, 8.0)


class Tuned(OtherModule):
    """The base model may be another one of the same shape."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            model = tiny_model(tied=True)
            with torch.no_grad():
                model.model.layers[0].self_attn.q_proj.weight.mul_(self.factor)
            strategy: Any = self.trainer.strategy
            self.policy = strategy.parallelize(model)


def fit(
    folder: Path, epochs: int, resume: Path | None = None, lora: LoRASettings | None = SETTINGS, factor: float = 1.0
) -> tuple[list[Any], Path]:
    pl.seed_everything(1, verbose=False)
    strategy = ArchonStrategy("d1", lora=lora, async_save=True)
    trainer = pl.Trainer(
        strategy=strategy, accelerator="cpu", devices=1, logger=False,
        max_epochs=epochs, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder,
    )  # fmt: skip
    module = Tuned(factor)
    trainer.fit(module, DataLoader(Steps(), batch_size=None), ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    strategy.saver.wait()
    return [row[:3] for row in module.seen], folder / "last.ckpt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    return fit(tmp_path_factory.mktemp("adapters"), 1)


def test_resuming_goes_on_as_if_never_stopped(saved: tuple[list[Any], Path], tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "a", 2)
    resumed, _ = fit(tmp_path / "b", 2, saved[1])
    assert whole[:3] == saved[0] and whole[3:] == resumed


def test_only_adapters_are_stored(saved: tuple[list[Any], Path]) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(str(saved[1])).read_metadata().state_dict_metadata
    assert stored and all(".adapter.lora_" in name for name in stored)
    assert len(stored) == 4 * 7 * 2 * (1 + 3)  # layers, linears, factors; itself, two moments and the step count


def test_another_base_model_is_refused(saved: tuple[list[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained on a base model of weight norm"):
        fit(tmp_path, 2, saved[1], factor=1.2)


def test_other_adapters_and_none_are_refused(saved: tuple[list[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds adapters of r=4 .* but here are adapters of r=2"):
        fit(tmp_path, 2, saved[1], LoRASettings(2, 8.0))
    with pytest.raises(ConfigError, match=r"holds adapters of .* but here are no adapters"):
        fit(tmp_path, 2, saved[1], None)
