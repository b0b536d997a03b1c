"""The Lightning Trainer of a run and its log file, from a checked configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import lightning as L
import structlog
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from tau2_lightning.config.redaction import redacted
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.cluster import trainer_accelerator, trainer_devices
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.configured import configured_strategy
from tau2_lightning.telemetry.quiet import quiet_libraries
from tau2_lightning.telemetry.unfailing import Unfailing
from tau2_lightning.telemetry.warned import warn

from .deadlines import collective_timeout, deadlines_of
from .instantiate import instantiate_callbacks, instantiate_loggers
from .loggers import csv

_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def configure_logging(folder: RunFolder) -> None:
    """Write events to ``logs/run-rank<n>.log``."""
    quiet_libraries()
    path = folder.logs / f"run-rank{global_rank()}.log"

    def tell(error: OSError) -> None:
        warn(f"{path} cannot be written, so the log has gaps: {error.strerror or error}")

    stream: Any = Unfailing(path.open("a"), tell)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
            _without_secrets,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
    )


def _without_secrets(_: object, __: str, line: Any) -> str:
    """A processor of structlog: the line without secrets, which errors of libraries may quote."""
    return redacted(str(line))


def build_trainer(
    config: RunConfig,
    folder: RunFolder,
    callbacks: Sequence[Callback] | None = None,
    loggers: Sequence[Logger] | None = None,
) -> L.Trainer:
    """The Lightning Trainer of this run, with its strategy.

    ``callbacks`` and ``loggers`` default to those of the configuration; the CSV file is written in any case.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    callbacks = instantiate_callbacks(config, folder) if callbacks is None else callbacks
    loggers = instantiate_loggers(config, folder) if loggers is None else loggers
    devices, nodes = trainer_devices(config)
    t = config.trainer
    return L.Trainer(
        strategy=build_strategy(config),
        accelerator=trainer_accelerator(config),
        devices=devices,
        num_nodes=nodes,
        max_epochs=t.max_epochs,
        max_steps=t.max_steps,
        max_time=t.max_time,
        min_epochs=t.min_epochs,
        min_steps=t.min_steps,
        check_val_every_n_epoch=t.validate_every_n_epochs or sys.maxsize,
        limit_val_batches=t.limit_val_batches,
        num_sanity_val_steps=0,
        inference_mode=False,  # weights under inference mode cannot be trained afterwards
        use_distributed_sampler=False,
        logger=[csv(folder, config), *loggers],
        callbacks=[*callbacks],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=t.log_every_n_steps,
        profiler=_profiler(t.profiler, folder),
        detect_anomaly=t.detect_anomaly,
        default_root_dir=folder.root,
    )


def build_strategy(config: RunConfig) -> ArchonStrategy:
    """The strategy of this run, laid out as ``allocation_mode`` says."""
    return configured_strategy(
        config, timeout=collective_timeout(deadlines_of(config)), save_timeout=config.trainer.save_timeout
    )


def _profiler(name: str | None, folder: RunFolder) -> Profiler | None:
    """Writes ``logs/<fit or validate>-profile.txt``."""
    return None if name is None else _PROFILERS[name](dirpath=folder.logs, filename=folder.numbered("profile"))
