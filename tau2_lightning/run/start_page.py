"""The page at the start of a run: what runs where, and where the files are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tau2_lightning.config.allocation import Component
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.launch.placement import Placement
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.telemetry.dashboards import dashboards

from .native_types import types_in_words
from .plan import environment_line
from .trainer_rules import length_in_words

#: Of the run's folder: what is in it, in the words of the docs.
FILES = (
    "metrics/metrics.csv (numbers of every step)",
    "results/ (tau2's files of validations)",
    "rollouts/ (every episode)",
    "checkpoints/",
    "exports/ and policy/ (Hugging Face folders)",
    "logs/",
)


def print_start_page(
    config: RunConfig,
    policy: Path,
    folder: RunFolder,
    checkpoint: str | None,
    loggers: Iterable[object],
    console: Console | None = None,
) -> None:
    """Print the page on stderr, unless ``trainer.progress=off``; ``loggers`` are the run's."""
    if config.trainer.progress == "off":
        return
    console = console or Console(stderr=True)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    lines = list(start_page(config, policy, folder, checkpoint, loggers))
    if not console.is_terminal:  # one line for each, however long
        for label, text in lines:
            console.print(f"{label:<10}{text}", highlight=False, markup=False, soft_wrap=True)
        return
    for label, text in lines:
        table.add_row(label, Text(text))
    console.print(table)


def start_page(
    config: RunConfig, policy: Path, folder: RunFolder, checkpoint: str | None, loggers: Iterable[object] = ()
) -> Iterator[tuple[str, str]]:
    """The lines of the page: (label, text)."""
    start = f", start {folder.start}" if folder.start > 1 else ""
    yield "run", f"{folder.root}{start}" + (f", from {Path(checkpoint).name}" if checkpoint else "")
    yield "policy", str(config.actor.path or f"{policy} (tiny, size {config.actor.size or 's'})")
    if config.actor.path is not None:
        yield "numbers", types_in_words(config)
    placement = placement_of(config)
    yield "engines", _engines(config, placement)
    if config.mode == "train":
        yield "trainer", in_words(placement, placement.allocation.training)
    for domain in config.by_domain:
        yield "plays", environment_line(config, domain).removeprefix("environment: ")
    yield from _models(config, placement)
    if config.mode == "train":
        d, g = config.train_dataset, config.gconfig
        yield "training", f"{length_in_words(config)} of {d.batch_size} tasks x {g.n_samples} samples"
    yield "files", ", ".join(FILES)
    yield "look", f"python -m tau2_lightning.report {folder.root} --watch"
    for dashboard in dashboards(loggers):
        yield "also", dashboard.where()


def _engines(config: RunConfig, placement: Placement) -> str:
    if config.rollout.engine_urls:
        return f"{', '.join(config.rollout.engine_urls)} (not started by this run)"
    return f"{in_words(placement, placement.allocation.generation)}; log: logs/engine.log"


def _models(config: RunConfig, placement: Placement) -> Iterator[tuple[str, str]]:
    """The models of the environment: the user's and the judge's."""
    e = config.econfig
    if e.user_engine.path is not None:
        yield "user", f"{e.user_engine.path}, {in_words(placement, placement.user)}; log: logs/user_engine.log"
    elif e.user_llm or e.user_llm_base_url:
        yield "user", f"{e.user_llm or 'the model served'} at {e.user_llm_base_url or 'its provider'}"
    if e.judge_llm or e.judge_llm_base_url:
        yield "judge", f"{e.judge_llm or 'the model served'} at {e.judge_llm_base_url or 'its provider'}"


def in_words(placement: Placement, component: Component | None) -> str:
    """``vllm:d2t2, 4 devices: node 0 gpu 0-3``; on CPU the number of processes of each node."""
    if component is None:
        return "none"
    places = [place for place in placement.places if place.component is component]
    unit = "process" if placement.on_cpu else "device"
    plural = "" if len(places) == 1 else "es" if placement.on_cpu else "s"
    nodes = []
    for node, own in groupby(places, key=lambda place: place.node):
        local = [place.local for place in own]
        nodes.append(f"node {node} " + (f"cpu x {len(local)}" if placement.on_cpu else f"gpu {spans(local)}"))
    return f"{component}, {len(places)} {unit}{plural}: {', '.join(nodes)}"


def spans(numbers: Sequence[int]) -> str:
    """``0-3,6`` for 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
