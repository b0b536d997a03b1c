"""Loggers as a run makes them: in its folder, numbered by its start, without secrets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.launch.run_folder import RunFolder


def csv(folder: RunFolder) -> CSVLogger:
    """``metrics/metrics.csv`` in the run's folder; every run has it."""
    return CSVLogger(folder.root, name=folder.numbered("metrics"), version="", flush_logs_every_n_steps=1)


def tensorboard(folder: RunFolder, **options: Any) -> TensorBoardLogger:
    """Event files in ``tensorboard/`` of the run's folder. ``options`` are TensorBoardLogger's."""
    return TensorBoardLogger(folder.root, name=folder.numbered("tensorboard"), version="", **options)


def wandb(
    folder: RunFolder,
    config: RunConfig,
    project: str | None = None,
    entity: str | None = None,
    tags: Sequence[str] = (),
    **options: Any,
) -> WandbLogger:
    """A W&B run named ``<experiment>/<trial>``, offline without a key.

    ``options`` are arguments of WandbLogger or of ``wandb.init``.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    defaults = {
        "name": f"{config.experiment_name}/{folder.root.name}",
        "save_dir": folder.root,
        "offline": not _has_wandb_key(),
        "config": without_secrets(config),
        "settings": _quiet_wandb(),
    }
    return WandbLogger(project=project, entity=entity, tags=list(tags) or None, **(defaults | options))


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def _quiet_wandb() -> Any:
    import wandb

    # Without meta: it would carry the command line, and with it any key given there.
    return wandb.Settings(silent=True, console="off", x_disable_meta=True)
