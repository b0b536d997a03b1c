"""Someone else's LightningModule under ArchonStrategy. Also a script: ``lightning_job.py SPEC FOLDER [RESUME]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy import ArchonStrategy
from tests.strategy.tiny import clipped_loss, tiny_batches, tiny_model


class Steps(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(100, 103)


class OtherModule(pl.LightningModule):
    """Uses the strategy's four calls and nothing else of this project."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layers = layers
        self.seen: list[tuple[float, ...]] = []
        self.votes: list[bool] = []

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            strategy: Any = self.trainer.strategy
            self.policy = strategy.parallelize(tiny_model(tied=True, layers=self.layers))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-3, eps=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, 1.0, 5)]

    def mine(self, seed: int) -> list[MicroBatch]:
        strategy: Any = self.trainer.strategy
        return tiny_batches(seed=seed)[strategy.data_rank :: strategy.data_world]

    def training_step(self, seed: Any, index: int) -> None:
        strategy: Any = self.trainer.strategy
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = strategy.forward_backward(self.mine(int(seed)), clipped_loss).loss
        norm = strategy.clip_grad_norm(0.5)
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self.log("loss", loss)
        self.seen.append((float(loss), float(norm), optimizer.param_groups[0]["lr"], float(torch.rand(()))))

    def on_train_end(self) -> None:
        """Ask the strategy as callbacks like EarlyStopping do: all say yes, one says no, one says yes, all say no."""
        ask, first = self.trainer.strategy.reduce_boolean_decision, self.trainer.is_global_zero
        self.votes = [ask(True), ask(not first), ask(first, all=False), ask(False, all=False)]

    def validation_step(self, batch: Any, index: int) -> None:
        strategy: Any = self.trainer.strategy
        loss = strategy.forward_backward(self.mine(77), clipped_loss, train=False).loss
        self.log("val", loss, sync_dist=True)


def loader() -> DataLoader[Any]:
    return DataLoader(cast("Dataset[Any]", torch.arange(4)), batch_size=1)


def run(text: str, folder: str, resume: str | None = None, layers: int = 4) -> dict[str, Any]:
    """Validate, fit one epoch of three steps, validate, save; or resume for one more epoch."""
    pl.seed_everything(1, verbose=False)
    trainer = pl.Trainer(
        strategy=ArchonStrategy(text), accelerator="cpu", devices=ParallelSpec.parse(text).world, logger=False,
        max_epochs=2 if resume else 1, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, enable_checkpointing=False, default_root_dir=folder,
    )  # fmt: skip
    module = OtherModule(layers)
    before = [] if resume else trainer.validate(module, loader(), verbose=False)
    trainer.fit(module, DataLoader(Steps(), batch_size=None), ckpt_path=resume)
    after = trainer.validate(module, loader(), verbose=False)
    trainer.save_checkpoint(Path(folder) / "last.ckpt")
    reloaded = trainer.validate(module, loader(), ckpt_path=str(Path(folder) / "last.ckpt"), verbose=False)
    result = {"before": before, "seen": module.seen, "after": after, "reloaded": reloaded, "step": trainer.global_step}
    result["votes"] = module.votes
    if trainer.is_global_zero:
        torch.save(result, Path(folder) / "result.pt")
    return result


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
