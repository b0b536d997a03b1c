"""Callbacks and a logger of a user, as the command line names them, and some that cannot be used."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from tau2_lightning.callbacks.seams import data_of, module_of
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.run_folder import RunFolder


class Watching(L.Callback):
    """Keeps what a callback may read."""

    made: ClassVar[list[Watching]] = []

    def __init__(self, folder: RunFolder, note: str = "", tags: list[str] | None = None) -> None:
        self.folder, self.note, self.tags = folder, note, tags
        self.versions: list[int] = []
        self.metrics: list[dict[str, float]] = []
        self.scores: list[float] = []
        self.lines: list[str] = []
        self.planned = 0.0
        Watching.made.append(self)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        module = module_of(pl_module)
        self.versions.append(module.weights_version)
        self.metrics.append(module.last_metrics)
        self.planned = module.planned_batches
        self.lines.append(data_of(trainer).clock.current)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        (newest,) = data_of(trainer).newest_evaluations
        assert newest.scalars().items() <= module_of(pl_module).last_evaluation["metrics"].items()
        self.scores.append(newest.summary.mean_reward)


class Slow(L.Callback):
    """Sleeps after every batch, so that training takes time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_: Any) -> None:
        import time

        time.sleep(self.seconds)


class OwnLogger(CSVLogger):
    """A CSVLogger with another name, which gets the configuration."""

    def __init__(self, save_dir: str, config: RunConfig, name: str = "own") -> None:
        super().__init__(save_dir, name=name, version="")
        self.seed = config.seed


class Breaks(L.Callback):
    def __init__(self) -> None:
        raise RuntimeError("no connection")


def a_number() -> int:
    return 3


def makes_none() -> L.Callback:
    return 3  # type: ignore[return-value]
