"""Writes when each phase of a run began and ended: the timeline of the report."""

from __future__ import annotations

from typing import Any

import lightning as L

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.telemetry.timeline import Timeline

from .seams import data_of


class PhaseRecord(L.Callback):
    """Appends the phases since the last call to ``logs/phases.csv`` after each batch and validation, on rank 0."""

    def __init__(self, folder: RunFolder) -> None:
        self._timeline = Timeline(folder.root, folder.start)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            self._timeline.append(data_of(trainer).clock.spans)
