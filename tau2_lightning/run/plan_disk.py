"""The disk that a run needs: checkpoints, the exported policy, and the dialogues of validations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.strategy.families.registry import family_of
from tau2_lightning.strategy.held_parameters import model_without_memory
from tau2_lightning.strategy.lora import LoRASettings, plan_adapters
from tau2_lightning.strategy.memory import Demand
from tau2_lightning.strategy.moments import FORMATS

from .plan_validation import validation_episodes

_GIB = 2.0**30
#: Bytes of an episode in tau2's format of results, without the policy and the tools: a telecom dialogue of 40 messages.
EPISODE = 60_000


@dataclass(frozen=True)
class Disk:
    """Bytes: one ``checkpoint``, ``kept`` of them at the same time (-1: all), the ``export`` at the end, and the
    ``results`` of one validation."""

    checkpoint: float
    kept: int
    export: float
    results: float

    @property
    def total(self) -> float:
        """What a run needs, without the results of validations after the first; of all checkpoints only two are
        counted."""
        return self.checkpoint * (self.kept if self.kept >= 0 else 2) + self.export + self.results


def disk_of(config: RunConfig, policy: Path | str) -> Disk | None:
    """The disk of a run with the model at ``policy``; None for a model of no known family, or none that can be read.

    A checkpoint holds what is trained in float32, and its moments as they are kept (adapters alone, where there are
    some). The newest ``trainer.save_top_k``, the best, and the one that is being written exist at the same time.
    """
    try:
        model = load_model_config(policy)
        if family_of(model) is None:
            return None
        made, lora = model_without_memory(model), LoRASettings.of(config.actor.lora)
        sizes = [parameter.numel() for parameter in made.parameters()]
        trained = (
            sizes if lora is None else [rows * columns for _, (rows, columns) in plan_adapters(made, lora).shapes()]
        )
    except (ConfigError, OSError, ValueError):
        return None
    demand = Demand(moments=FORMATS[config.actor.optimizer.type])
    checkpoint = sum(count * (4 + demand.moment_bytes(count)) for count in trained)
    stored = 4 if str(getattr(model, "dtype", None)) in ("torch.float32", "None") else 2
    adapters = sum(trained) * 4 if lora is not None else 0
    keep = config.trainer.save_top_k
    kept = 0 if keep == 0 else -1 if keep < 0 else keep + 2
    return Disk(checkpoint, kept, sum(sizes) * stored + adapters, _results(config))


def _results(config: RunConfig) -> float:
    """Bytes of the dialogues of one validation."""
    known = validation_episodes(config)
    return EPISODE * sum(
        known.get(name, (view.valid_dataset.limit or 100) * view.valid_dataset.num_trials)
        for name, view in config.by_domain.items()
    )


def results_lines(config: RunConfig) -> Iterator[str]:
    """The line of the plan of a validation about the disk."""
    free = _free(config.output_dir)
    yield f"disk: {_results(config) / _GIB:.2f} GiB for the dialogues of the validation" + _room(free, config)


def disk_lines(config: RunConfig, policy: Path | str) -> Iterator[str]:
    """The line of a plan about the disk."""
    disk = disk_of(config, policy)
    if disk is None:
        return
    number = f"{disk.kept} x" if disk.kept >= 0 else "all checkpoints, each"
    free = _free(config.output_dir)
    yield (
        f"disk: {number} {disk.checkpoint / _GIB:.1f} GiB for a checkpoint (newest, best, the one in writing) "
        f"+ {disk.export / _GIB:.1f} for the export + {disk.results / _GIB:.2f} for each validation = "
        f"{'at least ' if disk.kept < 0 else ''}{disk.total / _GIB:.1f} GiB" + _room(free, config)
    )


def _room(free: float | None, config: RunConfig) -> str:
    return "" if free is None else f"; {free / _GIB:.1f} GiB are free at {config.output_dir}"


def disk_warnings(config: RunConfig, policy: Path | str) -> Iterator[str]:
    """A warning when the disk of this machine cannot hold the training run."""
    if config.mode == "validate":
        return
    disk, free = disk_of(config, policy), _free(config.output_dir)
    if disk is not None and free is not None and disk.total > free and config.scheduler.type == "local":
        yield (
            f"output_dir={config.output_dir} has {free / _GIB:.1f} GiB free, and the run needs "
            f"{disk.total / _GIB:.1f}: lower trainer.save_top_k, or name another disk"
        )


def _free(folder: Path) -> float | None:
    for existing in (folder, *folder.resolve().parents):
        if existing.is_dir():
            return float(shutil.disk_usage(existing).free)
    return None
