"""Writes each validation as a tau2 results file, so that tau2's own tools can view and re-score it."""

from __future__ import annotations

import lightning as L

from tau2_lightning.launch.run_folder import RunFolder

from .seams import data_of


class ResultsFiles(L.Callback):
    """One file per validation and domain in ``folder.results``:
    ``<number>_<domain>_<split>_version<weights version>.json``.

    The number counts the validations of one start. From the second start on, the name ends with the start's number.
    Each file carries the stamp of its evaluation.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for one in data_of(trainer).newest_evaluations:
            # Not the Trainer's step: a checkpoint that is only validated does not set it.
            stem = f"{one.number:02d}_{one.domain}_{one.split}_version{one.weights_version}"
            one.write(self.folder.results / self.folder.numbered(stem, ".json"))
