"""What a batch lacks when the checkpoint after it is written: its line in the record, and perhaps a validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np

from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.telemetry.record import ContinuedCSV

from .seams import data_of, module_of


class UnfinishedBatch(L.Callback):
    """Does after a resume what an uninterrupted run would have done between a checkpoint and the next batch.

    A checkpoint is written at the end of a batch, before its weights are synced. Then Lightning logs the batch, and at
    the end of an epoch validates. A run that is killed in between has the batch in its checkpoint, and Lightning goes
    on with the next one. So the checkpoint holds the batch's numbers, the rows that the parity guard compares in its
    weight sync, and whether a validation is due.
    """

    def __init__(self) -> None:
        self.sync_metrics: Mapping[str, float] = {}  # of the newest weight sync
        self._validated = -1  # version of the weights of the newest validation
        self._loaded: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = module_of(pl_module).weights_version

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        module, loop = module_of(pl_module), trainer.fit_loop.epoch_loop
        batches: Any = loop.batch_progress.current
        due = (
            loop.batch_progress.is_last_batch
            and batches.processed == batches.ready  # else the batch has broken off
            and loop._should_check_val_epoch()
            and self._validated != module.weights_version
        )
        guard = data_of(trainer).rollouts.newest_guard_rows if trainer.is_global_zero else None
        checkpoint["unfinished"] = {
            "step": module.weights_version - 1,
            "epoch": trainer.current_epoch,
            "metrics": dict(module.last_metrics),
            "guard_rows": asdict(guard) if guard is not None else None,
            # The resumed run makes up for it; Lightning itself goes back into one that had begun.
            "validates": due,
            "validation": due and trainer.training,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Mapping[str, Any]
    ) -> None:
        self._loaded = dict(checkpoint.get("unfinished", {}))
        if rows := self._loaded.get("guard_rows"):
            data_of(trainer).rollouts.newest_guard_rows = GuardRows(**rows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the weights were synced. Collective."""
        loaded, self._loaded = self._loaded, {}
        if not loaded or loaded["step"] != module_of(pl_module).weights_version - 1:
            return
        if trainer.is_global_zero:
            self._log(trainer, loaded)
        if loaded["validation"]:
            _validate(trainer)

    def _log(self, trainer: Any, loaded: Mapping[str, Any]) -> None:
        """Log the batch of the checkpoint where the record lacks it."""
        step, every = int(loaded["step"]), trainer.log_every_n_steps
        record = next((logger for logger in trainer.loggers if isinstance(logger, ContinuedCSV)), None)
        if record is None or record.holds(step) or not every or (step + 1) % every:
            return
        numbers = {**loaded["metrics"], **self.sync_metrics}
        # Lightning keeps what is logged in float32.
        metrics = {name: float(np.float32(value)) for name, value in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics | {"epoch": loaded["epoch"]}, step=step)
            logger.save()


def _validate(trainer: L.Trainer) -> None:
    """Validate as Lightning does after the last batch of an epoch."""
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first
