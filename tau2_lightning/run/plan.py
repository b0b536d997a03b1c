"""``mode=plan``: a table of processes and devices, and the size of the job. Nothing is started.

The job is what the other words make it: training, or with ``mode=validate`` beside it (or in an experiment) a
validation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tau2_lightning.config.allocation import Allocation, AllocationError
from tau2_lightning.config.redaction import redacted
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import masked
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.cluster import gpus_per_node, placement_of
from tau2_lightning.launch.placement import Placement, place
from tau2_lightning.launch.rules import pointing
from tau2_lightning.rollout.deadlines import Limits, training_episodes

from .checkpoints import planned_checkpoint
from .compose import load_config
from .deadlines import validation_seconds
from .environment_rules import resolved_where_known, user_of
from .forecast import warnings_of
from .native_types import types_in_words
from .notices import notices
from .plan_memory import memory_lines
from .plan_tokens import token_lines
from .plan_validation import validation_in_words, validation_line
from .policy import policy_problems
from .router_replay import replay_lines
from .templates import template_lines
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
    """What is played of one domain, as far as it is known: a ``null`` that is not resolved is left out."""
    view = config.by_domain[domain]
    share = config.weights[domain] / sum(config.weights.values())
    parts = [
        f"tau2 {domain}",
        f"{share:.0%} of the tasks" if len(config.weights) > 1 and config.mode == "train" else "",
        _user_in_words(view),
        f"train on split `{view.train_dataset.split}`" if view.mode == "train" else "",
        *validation_in_words(view),
    ]
    return f"environment: {', '.join(filter(None, parts))}"


def _user_in_words(view: RunConfig) -> str:
    e, user = view.econfig, user_of(view.econfig)
    if e.solo_mode:
        return "solo (no user)"
    if user is None:
        return "" if e.solo_mode is None else "user: not configured"
    return f"user: {user}"


def _work(config: RunConfig) -> str:
    """What the job does: its steps, or its episodes."""
    if config.mode == "validate":
        return validation_line(config, planned_checkpoint(config))
    d, g = config.train_dataset, config.gconfig
    return (
        f"training: {length_in_words(config)} of {d.batch_size} tasks x "
        f"{g.n_samples} samples = {d.batch_size * g.n_samples} episodes"
    )


def _limits_in_words(config: RunConfig, placement: Placement) -> Iterator[str]:
    limits = Limits.of(config, placement)
    validating = config.mode == "validate"
    seconds = validation_seconds(config, limits) if validating else limits.batch(training_episodes(config))
    yield (
        f"episodes: at most {limits.concurrent} at the same time over {limits.engines} engine(s); time limits: "
        f"completion {limits.request:.0f} s, episode {limits.episode:.0f} s, "
        f"{'validation' if validating else 'batch'} {seconds:.0f} s"
    )


def _replay_in_words(config: RunConfig) -> list[str]:
    path = config.actor.path
    try:
        return replay_lines(config, Path(path)) if path is not None and Path(path).is_dir() else []
    except ConfigError:  # printed with the other reasons
        return []


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
    table = Table(title=f"{placement.allocation}" + (", mode=validate" if config.mode == "validate" else ""))
    for column in ("device", "component", "rank", "place"):
        table.add_column(column)
    for row in device_rows(placement):
        table.add_row(*row)
    console.print(table)
    console.print("checking the rest (half a minute) ...")  # tau2 and Lightning are imported for it
    problems: tuple[Violation, ...] = ()
    try:
        config = load_config(words, starts=True)
        problems = tuple(policy_problems(config))
    except ConfigError as error:
        problems, config = error.violations, resolved_where_known(config)
    urls = masked("rollout.engine_urls", config.rollout.engine_urls)
    tiny = f"tiny (size {config.actor.size}), warm-started on generated demonstrations"
    lines = [
        f"policy: {config.actor.path or tiny}",
        *([] if config.actor.path is None else [f"numbers: {types_in_words(config)}"]),
        *template_lines(config),
        *([] if problems or config.mode == "validate" else token_lines(config)),
        *_replay_in_words(config),
        *(environment_line(config, name) for name in config.by_domain),
        _work(config),
        f"engine: {placement.allocation.engine}, {', '.join(urls) or 'launched by the run'}; "
        f"proxy on {config.rollout.host}",
        f"scheduler: {config.scheduler.type}, {config.cluster.n_nodes} node(s)",
        *_limits_in_words(config, placement),
    ]
    for line in [*lines, *memory_lines(config), *(f"notice: {one}" for one in notices(config))]:
        console.print(redacted(line), highlight=False, markup=False, soft_wrap=True)
    for warning in [] if problems else warnings_of(config):
        console.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)
    for problem in problems:
        console.print(redacted(f"would not start here: {problem}"), highlight=False, markup=False, soft_wrap=True)
    return 2 if problems else 0
