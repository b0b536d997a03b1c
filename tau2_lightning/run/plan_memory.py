"""The lines of ``mode=plan`` about memory, disk and time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tau2_lightning.config.allocation import AllocationError
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.strategy.layers import ActivationCheckpointing
from tau2_lightning.strategy.memory import memory_of_stages

from .device_memory import GIB, demand_of, memory_of_devices
from .memory_words import memory_lines_of
from .plan_disk import disk_lines, results_lines
from .plan_time import time_lines


def memory_lines(config: RunConfig) -> list[str]:
    """What each device needs, what activation checkpointing makes of it, the disk, and the time of a step.

    Empty for the tiny policy, and for a model or a layout that other lines of the plan refuse.
    """
    path = config.actor.path
    if path is None:
        return []
    devices = memory_of_devices(config, path)
    if not devices:
        return []
    if config.mode == "validate":
        return [*memory_lines_of(devices), *results_lines(config), *time_lines(config, path)]
    return [
        *memory_lines_of(devices),
        *_activation_lines(config, path),
        *disk_lines(config, path),
        *time_lines(config, path),
    ]


def _activation_lines(config: RunConfig, policy: Path | str) -> Iterator[str]:
    try:
        placement = placement_of(config)
        model, spec = load_model_config(policy), placement.allocation.training_spec()
        demand = demand_of(config, policy, model, on_cpu=placement.on_cpu)
    except (AllocationError, ConfigError, OSError, ValueError):
        return
    found = {}
    for mode in get_args(ActivationCheckpointing):
        stages = memory_of_stages(model, spec, replace(demand, activation_checkpointing=mode))
        worst = max(stages, key=lambda one: one.total)
        found[mode] = (worst.activations + max(worst.working, worst.logits)) / GIB
    listed = ", ".join(f"{size:.1f} with {mode}" for mode, size in found.items())
    kept = f"; {demand.prefix:,} of them are a shared prefix, computed once" if demand.prefix else ""
    yield (
        f"activations of micro-batches of at most {demand.max_tokens_per_mb:,} tokens, in GiB by "
        f"actor.activation_checkpointing: {listed}{kept}"
    )
