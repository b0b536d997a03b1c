"""The Trainer of supervised fine-tuning: the layout, adapters and options of GRPO's, checkpoints, resume and export."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tau2_lightning.batch.supervised import steps_of_epochs
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stopping import Stopped, StopSignals
from tau2_lightning.policy.dialogues import EncodedDialogue

from .work import newest_whole

if TYPE_CHECKING:
    import lightning as L

    from tau2_lightning.config.schema import RunConfig
    from tau2_lightning.config.warm_start import WarmStartConfig
    from tau2_lightning.strategy import ArchonStrategy

METRICS = "warm_start.csv"


@dataclass(frozen=True)
class Rows:
    """Encoded dialogues to train on, and those that are held out to measure the loss on."""

    training: Sequence[EncodedDialogue]
    held_out: Sequence[EncodedDialogue] = field(default=())

    def within(self, max_tokens: int) -> Rows:
        """Without the rows that are longer. Raises ConfigError when none is left to train on."""
        kept = [row for row in self.training if len(row) <= max_tokens]
        if not kept:
            shortest = min(map(len, self.training))
            remedy = f"Raise it to {shortest} at least"
            raise ConfigError([Violation("warm_start.max_tokens", max_tokens, "drops every dialogue", remedy)])
        return Rows(kept, [row for row in self.held_out if len(row) <= max_tokens])


def fine_tune(
    config: RunConfig, base: Path, rows: Rows, output: Path, log_dir: Path, stops: StopSignals | None = None
) -> dict[str, Any]:
    """Fine-tune the policy in ``base`` on ``rows`` and write it to ``output``. Returns the last metrics.

    A start that finds a checkpoint beside ``output`` goes on from it, to the same result. A signal that ``stops`` heeds
    ends training after the current step, with a checkpoint; Stopped is raised then.
    """
    settings = config.warm_start
    steps = _steps(settings, rows.training)
    if steps == 0:
        shutil.copytree(base, output)
        return {"steps": 0}
    from tau2_lightning.warm_start.module import SFTDataModule, SFTModule

    work = RunFolder(output.parent)
    checkpoint = newest_whole(work.root)
    strategy = _strategy(config)
    module = SFTModule(
        base,
        steps=steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_from=settings.decay_from,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        kind=config.actor.optimizer.type,
        offload=config.actor.optimizer.offload,
    )
    data = SFTDataModule(
        rows.training,
        rows.held_out,
        steps=steps,
        tokens_per_step=settings.tokens_per_step,
        max_tokens_per_mb=config.actor.max_tokens_per_mb,
        seed=settings.seed,
    )
    trainer = _trainer(config, strategy, steps, bool(rows.held_out), work, checkpoint, log_dir, stops)
    started = perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # how Lightning passes on Ctrl-C
            asked = stops.asked if stops is not None else None
            raise (KeyboardInterrupt() if asked is None else Stopped(asked)) from None
        raise
    strategy.save_pretrained(output)
    record = log_dir / "warm_start" / "metrics.csv"
    if global_rank() == 0 and record.is_file():
        shutil.copy(record, output / METRICS)
    return {"steps": steps, **module.last_metrics, "seconds_training": perf_counter() - started}


def _steps(settings: WarmStartConfig, rows: Sequence[EncodedDialogue]) -> int:
    if settings.steps is not None:
        return settings.steps
    return steps_of_epochs([len(row) for row in rows], settings.tokens_per_step, settings.seed, settings.epochs)


def _strategy(config: RunConfig) -> ArchonStrategy:
    """A given model is laid out and computed as GRPO computes it; the tiny one is made by one process."""
    from tau2_lightning.strategy import ArchonStrategy
    from tau2_lightning.strategy.configured import configured_strategy

    actor, precision = config.actor, config.warm_start.precision
    if actor.path is not None:
        # Weights that are frozen can be narrow only beside bfloat16 products.
        base_dtype = actor.lora.base_dtype if precision == "bf16" else "float32"
        return configured_strategy(config, precision=precision, base_dtype=base_dtype)
    return ArchonStrategy(
        "d1p1t1",
        precision=precision,
        activation_checkpointing=actor.activation_checkpointing,
        compile_blocks=actor.compile,
        packing=actor.packing,
        tree_training=actor.enable_tree_training,
        handwritten_elementwise=actor.handwritten_elementwise,
        async_save=config.trainer.async_save,
    )


def _trainer(
    config: RunConfig,
    strategy: ArchonStrategy,
    steps: int,
    validates: bool,
    work: RunFolder,
    checkpoint: Path | None,
    log_dir: Path,
    stops: StopSignals | None,
) -> L.Trainer:
    import lightning as L
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from tau2_lightning.callbacks.checkpoints import NewestCheckpoints
    from tau2_lightning.launch.cluster import trainer_accelerator, trainer_devices
    from tau2_lightning.strategy.checkpoint import read_meta
    from tau2_lightning.telemetry.record import ContinuedCSV
    from tau2_lightning.warm_start.progress import SFTProgress

    settings, given = config.warm_start, config.actor.path is not None
    done = 0 if checkpoint is None else int(read_meta(checkpoint)["global_step"])
    devices, nodes = trainer_devices(config) if given else (1, 1)
    checkpoints = NewestCheckpoints(
        work,
        keep=1,
        every_n_epochs=steps + 1,  # never: one epoch is the whole training
        every_n_steps=settings.checkpoint_every_n_steps,
        every_n_minutes=settings.checkpoint_every_n_minutes,
        at_end=False,
        stops=stops,
        config=config,
    )
    every = settings.validate_every_n_steps
    return L.Trainer(
        strategy=strategy,
        accelerator=trainer_accelerator(config),
        devices=devices,
        num_nodes=nodes,
        plugins=None if given else [LightningEnvironment()],
        max_epochs=1,
        max_steps=steps,
        limit_train_batches=steps,
        limit_val_batches=1.0 if validates else 0,
        val_check_interval=1.0 if every is None else min(every, steps),
        num_sanity_val_steps=0,
        inference_mode=False,  # weights under inference mode cannot be trained afterwards
        logger=ContinuedCSV(log_dir / "warm_start", done),
        callbacks=[SFTProgress("warm start", config.trainer.progress), checkpoints],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=min(10, steps),
        default_root_dir=log_dir,
    )
