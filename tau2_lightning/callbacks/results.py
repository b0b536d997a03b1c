"""Writes each validation as a tau2 results file, so that tau2's own tools can view and re-score it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning as L

if TYPE_CHECKING:
    from tau2_lightning.datamodule import Tau2DataModule


class ResultsFiles(L.Callback):
    """One file a validation in ``folder``: ``<number>_<domain>_<split>_step<global step>.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = cast("Tau2DataModule", trainer.datamodule)  # type: ignore[attr-defined]
        if trainer.is_global_zero and data.evaluations:
            newest = data.evaluations[-1]
            number = len(data.evaluations)
            newest.write(self.folder / f"{number:02d}_{newest.domain}_{newest.split}_step{trainer.global_step}.json")
