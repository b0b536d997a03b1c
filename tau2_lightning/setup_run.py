"""From a checked configuration to the objects of a run: logging, policy, algorithm, Trainer."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import structlog
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.allocation import Allocation
from tau2_lightning.callbacks.progress import RunProgress
from tau2_lightning.callbacks.results import ResultsFiles
from tau2_lightning.config import SECRETS, RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.phases import PhaseClock
from tau2_lightning.run_folder import RunFolder
from tau2_lightning.strategy import ArchonStrategy


def configure_logging(folder: RunFolder) -> None:
    """Events go to ``logs/run.log``; warnings of the libraries that concern nobody are silenced."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`__len__` on an iterable.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    stream = (folder.logs / f"run-rank{os.environ.get('LOCAL_RANK', '0')}.log").open("a")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
    )


def prepare_policy(config: RunConfig, clock: PhaseClock, folder: RunFolder) -> Path:
    """The Hugging Face folder training starts from: the given one, or the warm-started tiny policy (made once)."""
    if config.actor.path is not None:
        return Path(config.actor.path)
    from tau2_lightning.sft import warm_start_policy

    with clock.phase("warm start"):
        return warm_start_policy(config, folder.logs)


def instantiate_algorithm(config: RunConfig) -> PolicyGradient:
    """The algorithm named by ``algorithm._target_``."""
    try:
        algorithm = instantiate(config.algorithm)
    except Exception as error:  # Hydra wraps whatever a constructor raises
        raise ConfigError(
            [Violation("algorithm", config.algorithm, str(error).splitlines()[0], "See conf/algorithm/")]
        ) from error
    if not isinstance(algorithm, PolicyGradient):
        target = config.algorithm.get("_target_")
        raise ConfigError(
            [
                Violation(
                    "algorithm._target_",
                    target,
                    "is no PolicyGradient",
                    "Subclass tau2_lightning.algorithm.PolicyGradient",
                )
            ]
        )
    return algorithm


def resolve_checkpoint(config: RunConfig, folder: RunFolder) -> str | None:
    """The checkpoint to load, with ``last`` looked up in the run's folder."""
    if config.ckpt_path != "last":
        return config.ckpt_path
    newest = folder.last_checkpoint()
    if newest is None:
        raise ConfigError(
            [
                Violation(
                    "ckpt_path",
                    "last",
                    f"{folder.checkpoints} holds no checkpoint",
                    "Name experiment_name and trial_name of the run to resume",
                )
            ]
        )
    return str(newest)


def build_trainer(config: RunConfig, folder: RunFolder) -> L.Trainer:
    """The Lightning Trainer of this run, with ArchonStrategy laid out as ``allocation_mode`` says."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    training = Allocation.parse(config.allocation_mode).training
    assert training is not None, "checked with the configuration"
    world, nodes = training.world, config.cluster.n_nodes
    t = config.trainer
    strategy = ArchonStrategy(
        training.spec,
        schedule=config.actor.schedule,
        precision=config.actor.precision,
    )
    checkpoint = ModelCheckpoint(
        dirpath=folder.checkpoints,
        filename="step{step}",
        auto_insert_metric_name=False,
        every_n_epochs=t.checkpoint_every_n_epochs,
        save_top_k=t.save_top_k,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return L.Trainer(
        strategy=strategy,
        accelerator=t.accelerator,
        devices=max(1, world // nodes),
        num_nodes=nodes,
        max_epochs=t.max_epochs,
        check_val_every_n_epoch=t.validate_every_n_epochs or t.max_epochs + 1,
        num_sanity_val_steps=0,
        inference_mode=False,  # weights under inference mode cannot be trained afterwards
        use_distributed_sampler=False,
        logger=loggers(config, folder),
        callbacks=[checkpoint, RunProgress(t.progress), ResultsFiles(folder.results)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder.root,
    )


def loggers(config: RunConfig, folder: RunFolder) -> list[Logger]:
    """A CSV file always, and what ``logger`` names. W&B runs offline without a key."""
    c = config.logger
    made: list[Logger] = [CSVLogger(folder.root, name="metrics", version="", flush_logs_every_n_steps=1)]
    if c.name == "tensorboard":
        made.append(TensorBoardLogger(folder.root, name="tensorboard", version=""))
    if c.name == "wandb":
        made.append(
            WandbLogger(
                project=c.project,
                entity=c.entity,
                tags=c.tags or None,
                name=f"{config.experiment_name}/{folder.root.name}",
                save_dir=folder.root,
                offline=not _has_wandb_key(),
                config=config.model_dump(mode="json", exclude=SECRETS),
                settings=_quiet_wandb(),
            )
        )
    return made


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text()


def _quiet_wandb() -> Any:
    import wandb

    return wandb.Settings(silent=True, console="off")
