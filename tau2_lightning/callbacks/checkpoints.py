"""Writes checkpoints into the run's folder and keeps the newest of them."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from tau2_lightning.launch.run_folder import RunFolder


class NewestCheckpoints(ModelCheckpoint):
    """Writes a checkpoint every ``every_n_epochs`` epochs and keeps the newest ``keep`` (-1: all; 0: none is written).

    The checkpoint that training was resumed from is kept too. Checkpoints of an earlier start in the same folder count.
    """

    def __init__(self, folder: RunFolder, *, keep: int, every_n_epochs: int) -> None:
        # Lightning keeps the best of a metric; here the folder shows which ones are new, whatever ``keep`` was before.
        super().__init__(
            dirpath=folder.checkpoints,
            filename="step{step}",
            auto_insert_metric_name=False,
            every_n_epochs=every_n_epochs,
            save_top_k=-1 if keep else 0,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.folder, self.keep = folder, keep

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = self.best_model_path
        super().on_train_epoch_end(trainer, pl_module)
        if self.best_model_path != before and self.keep > 0 and trainer.is_global_zero:
            self._remove_old(trainer, Path(self.best_model_path))

    def _remove_old(self, trainer: L.Trainer, saved: Path) -> None:
        """Remove all but the newest. ``saved`` counts as new, although its write may not be complete."""
        others = [path for path in self.folder.finished_checkpoints() if path.name != saved.name]
        resumed = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path else None
        for path in others[self.keep - 1 :]:
            if path.resolve() != resumed:
                trainer.strategy.remove_checkpoint(path)
