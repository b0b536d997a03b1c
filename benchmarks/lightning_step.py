"""One training step under Lightning and `ArchonStrategy`, for the benchmarks that compare it with plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.strategy.outputs import TokenOutputs


def loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood of the trained tokens over all tokens of the step."""
    return -outputs.logprobs.sum() / mb["n_tokens"], {"tokens": mb["loss_mask"].sum()}


def rows_of(
    lengths: Sequence[int],
    rng: np.random.Generator,
    vocab: int,
    budget: int,
    *,
    packed: bool,
    multiple: int = 1,
    trained: int = 10,
) -> list[MicroBatch]:
    """Random rows of these lengths, cut into micro-batches of ``budget`` tokens as GRPOModule does.

    ``trained`` of ten tokens are trained, chosen by token id, so that packed and padded rows train the same ones.
    """  # fmt: skip
    batch = scoring_batch([rng.integers(0, vocab, n).tolist() for n in lengths])
    # The step's denominator stays all labels, trained or not.
    rows = [replace(row, loss_mask=row.loss_mask & (batch.tokens(row) % 10 < trained)) for row in batch.rows]
    count = batch.microbatch_count(budget, packed=packed, multiple=multiple)
    return replace(batch, rows=tuple(rows)).microbatches(budget, count, packed=packed)


class StepModule(L.LightningModule):
    """Logs what a training run logs. ``model`` makes the model on a device; ``last_loss`` is the last loss."""

    def __init__(self, data: list[MicroBatch], model: Callable[[torch.device], Any], lr: float = 1e-4) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.data, self.model, self.lr = data, model, lr
        self.net: Any = None
        self.last_loss = torch.zeros(())

    def configure_model(self) -> None:
        if self.net is None:
            strategy: Any = self.trainer.strategy
            self.net = strategy.parallelize(self.model(strategy.root_device)).train()

    def configure_optimizers(self) -> Any:
        return adamw(self.net.parameters(), lr=self.lr)

    def training_step(self, batch: Any, index: int) -> None:
        optimizer: Any = self.optimizers()
        strategy: Any = self.trainer.strategy
        optimizer.zero_grad()
        out = strategy.forward_backward(self.data, loss)
        norm = strategy.clip_grad_norm(1.0)
        optimizer.step()
        self.last_loss = out.loss
        self.log_dict({"loss": out.loss, "tokens": out.metrics["tokens"], "norm": norm}, batch_size=1)


def fit(
    module: StepModule, steps: int, callback: L.Callback, strategy: ArchonStrategy, accelerator: str, folder: str | Path
) -> None:
    """Run ``steps`` steps; write the logs to ``folder``."""
    trainer = L.Trainer(
        strategy=strategy, accelerator=accelerator, devices=1, max_epochs=1, callbacks=[callback],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, log_every_n_steps=1,
        logger=CSVLogger(folder), default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(range(steps), batch_size=None))  # type: ignore[arg-type]
