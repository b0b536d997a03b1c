"""Writes checkpoints into the run's folder: by epochs, batches and minutes, at the end, on errors and on signals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.errors import InfrastructureFault, TrainingDiverged
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stopping import Stopped, StopSignals
from tau2_lightning.policy.identity import tokenizer_digest
from tau2_lightning.strategy.from_rank_zero import FromRankZero, Ranks, reached_every_rank
from tau2_lightning.telemetry.phases import PhaseClock
from tau2_lightning.telemetry.warned import warn

from .retention import Retention


class NewestCheckpoints(Checkpoint):
    """Writes checkpoints and keeps the newest ``keep`` of them and the best (-1: all; 0: none is written).

    One is written every ``every_n_epochs`` epochs, every ``every_n_steps`` training batches, at the first end of a
    batch that is ``every_n_minutes`` after the one before, and, if ``at_end``, at the end of training. When an error or
    a signal (``stops``) ends training between two optimizer steps, the steps since the newest checkpoint are saved,
    too. All ranks decide together, by rank 0's clock and signals. ``config`` is stored in every checkpoint, without
    secrets.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        keep: int,
        every_n_epochs: int,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        at_end: bool = True,
        stops: StopSignals | None = None,
        config: RunConfig | None = None,
    ) -> None:
        self.folder, self.keep, self.every_n_epochs = folder, keep, every_n_epochs
        self.every_n_steps, self.every_n_minutes, self.at_end = every_n_steps, every_n_minutes, at_end
        self.stops, self.config = stops or StopSignals(0.0), config
        self.retention = Retention(folder, keep)
        self._saved = 0  # version of the weights in the newest checkpoint of this training
        self._at_epoch_end = self._saving = False
        self._boundary = 0  # optimizer steps at the newest boundary between two batches
        self._since = time.monotonic()

    # -- Lightning's hooks --------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stops.install()  # the Trainer has replaced the handlers

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved, self._boundary, self._since = _version(trainer, pl_module), trainer.global_step, time.monotonic()
        self.retention.continues(Path(trainer.ckpt_path) if trainer.ckpt_path else None, self._saved)
        self.stops.kept = lambda: self._kept(trainer, pl_module)
        self.stops.holding = True
        self.stops.install()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Lightning's label of a step is off by one after a resume from the middle of a validation or of a failed batch.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = getattr(pl_module, "weights_version", loop._batches_that_stepped)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._boundary = trainer.global_step
        stop, due = FromRankZero(cast("Ranks", trainer.strategy)).json(
            lambda: (self.stops.asked, self._is_due(trainer, pl_module))
        )
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if stop is not None or (due and (not last or _validates(trainer))):
            self._save(trainer, pl_module)
        self._at_epoch_end = bool(due and last)
        self._stop_if(stop)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.keep:
            self.retention.validated(getattr(pl_module, "last_evaluation", {}))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # One of this version is written again: resumed from the first, the epoch's validation would be missing.
        if self._at_epoch_end or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer, pl_module)
            self._at_epoch_end = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.at_end and self._saved != _version(trainer, pl_module):
            self._save(trainer, pl_module)
        self.stops.holding = False
        self._stop_if(FromRankZero(cast("Ranks", trainer.strategy)).json(lambda: self.stops.asked))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.stops.install()  # Lightning ignores further Ctrl-C
        if self.stops.holding and self._can_save(trainer, pl_module, exception):
            try:
                with _as_at_batch_end(trainer):
                    self._save(trainer, pl_module)
            except (InfrastructureFault, TrainingDiverged) as fault:  # the error that ended the run is the one to show
                warn(str(fault))
        self.stops.holding = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.config is not None:
            checkpoint["configuration"] = without_secrets(self.config)
        policy = getattr(pl_module, "policy_path", None)
        if policy is not None:
            checkpoint["tokenizer"] = tokenizer_digest(Path(policy))
            checkpoint["policy_path"] = str(Path(policy).absolute())

    # -- inside -------------------------------------------------------------------------------------------------------

    def _stop_if(self, asked: int | None) -> None:
        if asked is not None:
            raise Stopped(asked)

    def _is_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether the batch that ends now is one to save after."""
        done = getattr(pl_module, "weights_version", trainer.fit_loop.epoch_loop._batches_that_stepped + 1)
        by_steps = self.every_n_steps is not None and done % self.every_n_steps == 0
        minutes = (time.monotonic() - self._since) / 60
        return by_steps or (self.every_n_minutes is not None and minutes >= self.every_n_minutes)

    def _can_save(self, trainer: L.Trainer, pl_module: L.LightningModule, error: BaseException) -> bool:
        """Whether there is something new, no optimizer step is half done, and all ranks have come here."""
        together = trainer.world_size == 1 or reached_every_rank(error) or isinstance(error, TrainingDiverged)
        new = _version(trainer, pl_module) != self._saved
        return new and together and trainer.global_step == self._boundary and not self._saving

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.keep:
            return
        version = _version(trainer, pl_module)
        path = self.folder.checkpoints / f"step{trainer.global_step}.ckpt"
        self._saving = True  # stays so after a failure: on every rank, whatever error it is told
        clock: PhaseClock | None = getattr(getattr(trainer, "datamodule", None), "clock", None)
        with nullcontext() if clock is None else clock.phase("save"):
            trainer.save_checkpoint(path)
        self._saving, self._saved, self._since = False, version, time.monotonic()
        if trainer.is_global_zero:
            self.retention.saved(path, version)
            self.retention.validated(getattr(pl_module, "last_evaluation", {}))
            for old in self.retention.superfluous(path):
                trainer.strategy.remove_checkpoint(old)

    def _kept(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """What a run that is ended now has saved, in words."""
        lost = _version(trainer, pl_module) - self._saved
        if not lost:
            return "all complete training steps are saved"
        return f"the last {lost} training step{'s' if lost > 1 else ''} since the newest checkpoint are lost"


def _version(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """The version of the module's weights; of another module than ours the number of its optimizer steps."""
    return int(getattr(pl_module, "weights_version", trainer.global_step))


@contextmanager
def _as_at_batch_end(trainer: L.Trainer) -> Iterator[None]:
    """Inside, a state after the last batch of an epoch is as it was at the end of that batch, which Lightning resumes
    right. From a moment later, it would play a batch more in this epoch, or none in the next."""
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    epochs: Any = trainer.fit_loop.epoch_progress.current
    now = batches.current
    complete = now.completed == now.processed == now.ready and epochs.processed < epochs.started  # not broken off
    later = int(batches.is_last_batch and complete and trainer.training)
    for progress in (batches.current, batches.total):
        progress.completed -= later
    try:
        yield
    finally:
        for progress in (batches.current, batches.total):
            progress.completed += later


def _validates(trainer: L.Trainer) -> bool:
    """Whether this epoch ends with a validation."""
    every = trainer.check_val_every_n_epoch or 1
    return trainer.enable_validation and (trainer.current_epoch + 1) % every == 0
