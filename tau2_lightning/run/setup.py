"""From a checked configuration to the objects of a run: logging, policy, algorithm, Trainer."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import structlog
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from tau2_lightning.callbacks.checkpoints import NewestCheckpoints
from tau2_lightning.callbacks.progress import RunProgress
from tau2_lightning.callbacks.results import ResultsFiles
from tau2_lightning.config.allocation import Allocation
from tau2_lightning.config.schema import SECRETS, RunConfig
from tau2_lightning.environment import Dialogue, UserSettings, load_tasks
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.cluster import trainer_accelerator, trainer_devices
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.policy.loading import load_config, resolve_policy
from tau2_lightning.policy.tiny import SIZES
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.checkpoint import describe, fingerprint, read_meta
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.preflight import check_options
from tau2_lightning.telemetry.phases import PhaseClock
from tau2_lightning.telemetry.quiet import quiet_libraries


def configure_logging(folder: RunFolder) -> None:
    """Events go to ``logs/run-rank<n>.log``."""
    quiet_libraries()
    stream = (folder.logs / f"run-rank{global_rank()}.log").open("a")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=stream),
    )


def prepare_policy(config: RunConfig, clock: PhaseClock, folder: RunFolder, checkpoint: str | None) -> Path:
    """The Hugging Face folder training starts from: what ``actor.path`` names (a hub id is downloaded), or the
    warm-started tiny policy (made once).

    Raises ConfigError when ``checkpoint`` is of another model, or opening prompts do not fit; of a policy that is yet
    to be warm-started before that is done.
    """

    def accept(policy: Path) -> None:
        check_checkpoint(checkpoint, policy)
        if global_rank() == 0:
            check_options(config, policy)
            check_prompts(config, policy)

    if config.actor.path is not None:
        policy = resolve_policy(config.actor.path)
        accept(policy)
        return policy
    from tau2_lightning.warm_start.make import warm_start_policy

    if checkpoint is not None:
        check_size(checkpoint, config.actor.size or "s")
    with clock.phase("warm start"):
        return warm_start_policy(config, folder.logs, accept)


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


def check_checkpoint(checkpoint: str | None, policy: Path) -> None:
    """Raise ConfigError, naming both models, when ``checkpoint`` is of another model than the one at ``policy``."""
    if checkpoint is None:
        return
    stored = read_meta(Path(checkpoint)).get("model", {})
    here = fingerprint(load_config(policy))
    if stored != here:
        problem = f"holds {describe(stored)}, but {policy} is {describe(here)}"
        remedy = "Resume with the model it was made of"
        raise ConfigError([Violation("ckpt_path", checkpoint, problem, remedy)])


def check_size(checkpoint: str, size: str) -> None:
    """Raise ConfigError when ``checkpoint`` is not of a tiny policy of ``size``: known before there is one."""
    stored = read_meta(Path(checkpoint)).get("model", {})
    wrong = {key: value for key, value in SIZES[size].items() if stored.get(key, value) != value}
    if wrong:
        told = ", ".join(f"{key} {stored[key]}" for key in wrong)
        here = ", ".join(f"{key} {value}" for key, value in wrong.items())
        problem = f"holds a model with {told}; the tiny policy ({size}) has {here}"
        remedy = "Give actor.path or actor.size of the model it was made of"
        raise ConfigError([Violation("ckpt_path", checkpoint, problem, remedy)])


def check_prompts(config: RunConfig, policy: Path, looked_at: int = 20) -> None:
    """Raise ConfigError when opening prompts leave no room for an answer in ``gconfig.max_tokens``."""
    if config.rollout.workflow is not None:
        return  # what another agent says first is not known here
    longest = asyncio.run(longest_opening(config, policy, looked_at))
    if longest + config.gconfig.max_new_tokens > config.gconfig.max_tokens:
        g = config.gconfig
        problem = f"opening prompts take up to {longest} tokens, an answer up to {g.max_new_tokens} more"
        remedy = f"Use at least {longest + g.max_new_tokens}, and more for a dialogue"
        raise ConfigError([Violation("gconfig.max_tokens", g.max_tokens, problem, remedy)])


async def longest_opening(config: RunConfig, policy: Path, looked_at: int) -> int:
    """Tokens of the longest opening prompt among the first training and validation tasks."""
    settings = environment_settings(config)
    if settings.user.kind == "llm":
        settings = replace(settings, user=UserSettings(kind="scripted"))  # nobody is asked yet
    chat_format = ChatFormat.from_pretrained(policy, config.rollout.tool_call_parser)
    longest = 0
    for split in (config.train_dataset.split, config.valid_dataset.split):
        for task in load_tasks(settings.domain, split, solo_mode=settings.solo_mode)[:looked_at]:
            dialogue = Dialogue(task, settings)
            await dialogue.start()
            longest = max(longest, len(chat_format.render(dialogue.messages, dialogue.tools)))
    return longest


def build_trainer(config: RunConfig, folder: RunFolder) -> L.Trainer:
    """The Lightning Trainer of this run, with ArchonStrategy laid out as ``allocation_mode`` says."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    devices, nodes = trainer_devices(config)
    t = config.trainer
    strategy = ArchonStrategy(
        Allocation.parse(config.allocation_mode).training_spec(),
        schedule=config.actor.schedule,
        precision=config.actor.precision,
        activation_checkpointing=config.actor.activation_checkpointing,
        compile_blocks=config.actor.compile,
        lora=LoRASettings.of(config.actor.lora),
        replicate=config.actor.fsdp.replicate,
        async_save=t.async_save,
        packing=config.actor.packing,
        handwritten_elementwise=config.actor.handwritten_elementwise,
        timeout=rank_patience(config),
    )
    checkpoints = NewestCheckpoints(folder, keep=t.save_top_k, every_n_epochs=t.checkpoint_every_n_epochs)
    return L.Trainer(
        strategy=strategy,
        accelerator=trainer_accelerator(config),
        devices=devices,
        num_nodes=nodes,
        max_epochs=t.max_epochs,
        check_val_every_n_epoch=t.validate_every_n_epochs or t.max_epochs + 1,
        num_sanity_val_steps=0,
        inference_mode=False,  # weights under inference mode cannot be trained afterwards
        use_distributed_sampler=False,
        logger=loggers(config, folder),
        callbacks=[checkpoints, RunProgress(t.progress), ResultsFiles(folder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder.root,
    )


def rank_patience(config: RunConfig) -> timedelta:
    """How long a rank waits in a collective: longer than the first one may need for what it does alone there."""
    r = config.rollout
    alone = max(r.collect_timeout, r.engine_start_timeout, r.weight_sync.timeout)
    return timedelta(seconds=alone + 600)


def loggers(config: RunConfig, folder: RunFolder) -> list[Logger]:
    """A CSV file always, and what ``logger`` names. W&B runs offline without a key."""
    c = config.logger
    metrics = CSVLogger(folder.root, name=folder.numbered("metrics"), version="", flush_logs_every_n_steps=1)
    made: list[Logger] = [metrics]
    if c.name == "tensorboard":
        made.append(TensorBoardLogger(folder.root, name=folder.numbered("tensorboard"), version=""))
    if c.name == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")
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

    # Without meta: it would carry the command line, and with it any key given there.
    return wandb.Settings(silent=True, console="off", x_disable_meta=True)
