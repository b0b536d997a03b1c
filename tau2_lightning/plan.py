"""``mode=plan``: what would run where, without starting anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tau2_lightning.allocation import Allocation, AllocationError, Component
from tau2_lightning.compose import load_config
from tau2_lightning.config import RunConfig
from tau2_lightning.errors import ConfigError, Violation


def device_rows(allocation: Allocation, gpus_per_node: int | None) -> list[tuple[str, str, str, str]]:
    """One row a device: (device, component, rank within it, coordinates). Devices are numbered over nodes."""
    rows = []
    start = 0
    for group in allocation.groups:
        for offset in range(group[0].world):
            device = start + offset
            node = "" if not gpus_per_node else f"node {device // gpus_per_node} gpu {device % gpus_per_node}"
            for component in group:
                rows.append((node or f"device {device}", str(component), str(offset), _coordinates(component, offset)))
        start += group[0].world
    return rows


def _coordinates(component: Component, rank: int) -> str:
    """Place of a rank in the mesh; the last dimension varies fastest."""
    spec = component.spec
    parts = []
    for name in reversed("dpt" if component.generates else "pdct"):
        size = getattr(spec, name)
        parts.append(f"{name}{rank % size}")
        rank //= size
    return " ".join(reversed(parts))


def print_plan(config: RunConfig, words: Sequence[str], console: Console | None = None) -> int:
    """Print devices, ranks and roles, the job's size, and what would keep it from starting.

    Returns 0 for a job that would start on this machine, 2 for one that would not. Raises ConfigError when
    ``allocation_mode`` cannot be read.
    """
    console = console or Console(file=sys.stdout)
    try:
        allocation = Allocation.parse(config.allocation_mode)
    except AllocationError as error:
        raise ConfigError(
            [Violation("allocation_mode", config.allocation_mode, error.problem, error.allowed)]
        ) from error
    problems: tuple[Violation, ...] = ()
    try:
        config = load_config(words)
    except ConfigError as error:
        problems = error.violations
    table = Table(title=f"{allocation}")
    for column in ("device", "component", "rank", "place"):
        table.add_column(column)
    for row in device_rows(allocation, config.cluster.n_gpus_per_node):
        table.add_row(*row)
    console.print(table)
    d, g, t = config.train_dataset, config.gconfig, config.trainer
    steps = t.max_epochs * d.batches_per_epoch
    user = "solo" if config.econfig.solo_mode else f"user {config.econfig.user or 'not configured'}"
    lines = [
        f"policy: {config.actor.path or f'tiny ({config.actor.size}), warm-started on generated demonstrations'}",
        f"environment: tau2 {config.econfig.domain}, {user}, "
        f"train on {d.split}, validate on {config.valid_dataset.split} x {config.valid_dataset.num_trials} trials",
        f"training: {steps} steps ({t.max_epochs} epochs x {d.batches_per_epoch}) of {d.batch_size} tasks x "
        f"{g.n_samples} samples = {d.batch_size * g.n_samples} episodes",
        f"engine: {', '.join(config.rollout.engine_urls) or 'launched by the run'}; proxy on {config.rollout.host}",
        f"scheduler: {config.scheduler.type}, {config.cluster.n_nodes} node(s)",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"would not start here: {problem}", highlight=False, markup=False, soft_wrap=True)
    return 2 if problems else 0
