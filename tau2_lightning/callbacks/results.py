"""Writes each validation as a tau2 results file, so that tau2's own tools can view and re-score it."""

from __future__ import annotations

import lightning as L

from tau2_lightning.launch.run_folder import RunFolder

from .seams import data_of


class ResultsFiles(L.Callback):
    """One file per validation in ``folder.results``: ``<number>_<domain>_<split>_version<weights version>.json``.

    The number counts the validations of one start. From the second start on, the name ends with the start's number.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        evaluations = data_of(trainer).evaluations
        if trainer.is_global_zero and evaluations:
            newest = evaluations[-1]
            # Not the Trainer's step: a checkpoint that is only validated does not set it.
            stem = f"{len(evaluations):02d}_{newest.domain}_{newest.split}_version{newest.weights_version}"
            newest.write(self.folder.results / self.folder.numbered(stem, ".json"))
