"""Loggers as a run makes them: in its folder, continued by every start that trains, without secrets."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from tau2_lightning.config.flat import flattened
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.telemetry.layout import layout, score_names
from tau2_lightning.telemetry.record import ContinuedCSV
from tau2_lightning.telemetry.tensorboard_run import RunTensorBoard
from tau2_lightning.telemetry.wandb_run import RunWandb

from .variant import variant


def csv(folder: RunFolder, config: RunConfig) -> CSVLogger:
    """``metrics/metrics.csv`` in the run's folder; every run has it. A later start that trains continues it."""
    path = folder.root / _record(folder, config, "metrics")
    return ContinuedCSV(path, folder.batches_done, validates=folder.validates)


def tensorboard(folder: RunFolder, config: RunConfig, **options: Any) -> TensorBoardLogger:
    """Event files in ``tensorboard/`` of the run's folder; a later start that trains hides the steps that it makes
    again. ``options`` are TensorBoardLogger's."""
    if config.mode == "train" and folder.start > 1:
        options = {"purge_step": folder.batches_done} | options
    return RunTensorBoard(
        save_dir=folder.root,
        name=_record(folder, config, "tensorboard"),
        version="",
        configuration=without_secrets(config),
        scores=score_names(config),
        chapters=layout(config),
        **options,
    )


def wandb(
    folder: RunFolder,
    config: RunConfig,
    project: str | None = None,
    entity: str | None = None,
    tags: Sequence[str] = (),
    **options: Any,
) -> WandbLogger:
    """A W&B run named ``<experiment>/<trial>``, offline without a key. Every start that trains continues the same one.
    Runs that differ in nothing but their seed are a group.

    ``options`` are arguments of WandbLogger or of ``wandb.init``.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    defaults = {
        "name": f"{config.experiment_name}/{folder.root.name}",
        "save_dir": folder.root,
        "offline": not _has_wandb_key(),
        "config": flattened(without_secrets(config)),
        "group": variant(config),
        "job_type": config.mode,
        "settings": _quiet_wandb(),
        "id": _wandb_id(folder, config),
        "resume": "allow",
    }
    named = {"project": project, "entity": entity, "tags": list(tags) or None}
    return RunWandb(scores=score_names(config), **named, **(defaults | options))


@contextmanager
def wandb_finished() -> Iterator[None]:
    """Finish the W&B run that was begun inside: the next run of this process, in a sweep, begins one of its own."""
    code = 1
    try:
        yield
        code = 0
    finally:
        module = sys.modules.get("wandb")
        if module is not None and module.run is not None:
            module.finish(exit_code=code)


def _record(folder: RunFolder, config: RunConfig, name: str) -> str:
    """Training has one record over all its starts; a validation that comes later has one of its own."""
    return name if config.mode == "train" else folder.numbered(name)


def _wandb_id(folder: RunFolder, config: RunConfig) -> str:
    """The id of the W&B run: kept in the run's folder, so that it is the same wherever that folder is moved to."""
    path = folder.root / _record(folder, config, "wandb-id")
    if not path.is_file():
        if global_rank():
            return ""  # only rank 0 logs
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def _quiet_wandb() -> Any:
    import wandb

    # Without meta: it would carry the command line, and with it any key given there.
    return wandb.Settings(silent=True, console="off", x_disable_meta=True)
