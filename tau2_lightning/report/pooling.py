"""Runs that differ in nothing but their seed as one: their mean, with an interval over the runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tau2_lightning.errors import ConfigError
from tau2_lightning.evaluation.pooled import Evaluations, OverRuns, Pool
from tau2_lightning.evaluation.recorded import read_evaluations
from tau2_lightning.run.variant import SEED, settings

from .runs import RunData
from .series import Series

LABEL = 80  # characters at most


@dataclass(frozen=True)
class Variant:
    """Runs with the same settings but their seed; ``label`` names what they have and other variants do not."""

    label: str
    runs: tuple[RunData, ...]

    def pool(self) -> Pool:
        """The evaluations that the runs have recorded."""
        return Pool(self.label, {_name(run): _evaluations(run.root) for run in self.runs})

    def mean(self) -> RunData:
        """The mean of the runs' curves as a run of its own."""
        name = f"mean of {len(self.runs)} runs" + (f": {self.label}" if self.label else "")
        return RunData(self.runs[0].root.parent, name, mean_series([run.series for run in self.runs]), [], {})


def variants(runs: Sequence[RunData]) -> list[Variant]:
    """The runs by their settings, in their order."""
    by_settings: dict[str, list[RunData]] = defaultdict(list)
    known: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        found = settings(_configuration(run.root))
        key = repr(sorted(found.items(), key=lambda item: item[0]))
        by_settings[key].append(run)
        known[key] = found
    labels = _labels(known)
    return [Variant(labels[key], tuple(own)) for key, own in by_settings.items()]


def mean_series(every: Sequence[Mapping[str, Series]]) -> dict[str, Series]:
    """The mean of each metric at each step that at least two runs have logged, with its 95% interval over them."""
    found: dict[str, Series] = {}
    for name in sorted(set().union(*every)):
        at: dict[int, list[float]] = defaultdict(list)
        for run in every:
            if name in run:
                for step, value in zip(run[name].steps, run[name].values, strict=True):
                    if not math.isnan(value):
                        at[step].append(value)
        points = {step: OverRuns(tuple(values)) for step, values in sorted(at.items()) if len(values) > 1}
        if points:
            bounds = [one.interval for one in points.values()]
            found[name] = Series(
                list(points),
                [one.mean for one in points.values()],
                [low for low, _ in bounds],
                [high for _, high in bounds],
                "interval",
            )
    return found


def _labels(known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """``algorithm.eps_clip=0.1``: the settings in which variants differ; empty for a single one."""
    if len(known) < 2:
        return dict.fromkeys(known, "")
    names = sorted(set().union(*known.values()))
    differ = [name for name in names if len({repr(one.get(name)) for one in known.values()}) > 1]
    return {key: ", ".join(_short(differ, one))[:LABEL] for key, one in known.items()}


def _short(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[str]:
    return (f"{name}={values[name]}" for name in names if name in values)


def _name(run: RunData) -> str:
    seed = _configuration(run.root).get(SEED)
    return run.name if seed is None else f"{run.name} (seed {seed})"


def _configuration(root: Path) -> Mapping[str, Any]:
    """What the run's first start was configured with; empty where the folder does not hold it."""
    try:
        content = yaml.safe_load((root / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _evaluations(root: Path) -> Evaluations:
    try:
        return read_evaluations(root)
    except ConfigError:  # it has not ended
        return {}
