"""``mode=plan``: a table of processes and devices. Nothing is started."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tau2_lightning.config.allocation import Allocation, AllocationError
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.cluster import gpus_per_node, placement_of
from tau2_lightning.launch.placement import Placement, place
from tau2_lightning.launch.rules import pointing

from .compose import load_config
from .trainer_rules import length_in_words


def device_rows(placement: Placement) -> list[tuple[str, str, str, str]]:
    """One row for each rank: (node and device, component, rank within it, place in its mesh)."""
    unit = "cpu" if placement.on_cpu else "gpu"
    return [
        (
            f"node {one.node} {unit}" + ("" if placement.on_cpu else f" {one.local}"),
            str(one.component),
            str(one.rank),
            one.coordinates,
        )
        for one in placement.places
    ]


def _placement(config: RunConfig) -> Placement:
    """The run's placement. An allocation that is too large is placed as if the cluster were large enough."""
    allocation = Allocation.parse(config.allocation_mode)
    try:
        return placement_of(config)
    except AllocationError:  # printed below the table, with the other reasons
        return place(allocation, 1, gpus_per_node(config, allocation) and allocation.world)


def environment_line(config: RunConfig, domain: str) -> str:
    """What is played of one domain."""
    view = config.by_domain[domain]
    e, d, v = view.econfig, view.train_dataset, view.valid_dataset
    user = "solo (no user)" if e.solo_mode else f"user: {e.user or 'not configured'}"
    share = config.weights[domain] / sum(config.weights.values())
    part = f"{share:.0%} of the tasks, " if len(config.weights) > 1 else ""
    return (
        f"environment: tau2 {domain}, {part}{user}, train on split `{d.split}`, validate on split `{v.split}`, "
        f"{v.num_trials} trials each"
    )


def print_plan(config: RunConfig, words: Sequence[str], console: Console | None = None) -> int:
    """Print the devices, ranks and roles, the size of the job, and the reasons why it would not start.

    Returns 0 for a job that would start on this machine, else 2. Raises ConfigError when ``allocation_mode`` cannot be
    read.
    """
    console = console or Console(file=sys.stdout)
    try:
        placement = _placement(config)
    except AllocationError as error:
        raise ConfigError([pointing(error)]) from error
    table = Table(title=f"{placement.allocation}")
    for column in ("device", "component", "rank", "place"):
        table.add_column(column)
    for row in device_rows(placement):
        table.add_row(*row)
    console.print(table)
    console.print("checking the rest (half a minute) ...")  # tau2 and Lightning are imported for it
    problems: tuple[Violation, ...] = ()
    try:
        config = load_config(words)
    except ConfigError as error:
        problems = error.violations
    d, g = config.train_dataset, config.gconfig
    tiny = f"tiny (size {config.actor.size}), warm-started on generated demonstrations"
    lines = [
        f"policy: {config.actor.path or tiny}",
        *(environment_line(config, name) for name in config.by_domain),
        f"training: {length_in_words(config)} of {d.batch_size} tasks x "
        f"{g.n_samples} samples = {d.batch_size * g.n_samples} episodes",
        f"engine: {', '.join(config.rollout.engine_urls) or 'launched by the run'}; proxy on {config.rollout.host}",
        f"scheduler: {config.scheduler.type}, {config.cluster.n_nodes} node(s)",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(f"would not start here: {problem}", highlight=False, markup=False, soft_wrap=True)
    return 2 if problems else 0
