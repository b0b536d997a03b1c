"""The numbers of a run by step: every column of its ``metrics.csv``, with an interval where one is known."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from tau2_lightning.evaluation.intervals import LEVEL, student_t_quantile
from tau2_lightning.rollout_files.schema import KeptEpisode

FILE = Path("metrics") / "metrics.csv"
Band = Literal["", "interval", "range"]


@dataclass
class Series:
    """A metric: ``values`` at ``steps``. ``low`` and ``high`` are a 95% interval, or the smallest and largest value
    that were averaged (``band``); NaN where there is none."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    band: Band = ""

    def payload(self) -> dict[str, Any]:
        """JSON-able; rounded to six digits, None for NaN."""
        shown: dict[str, Any] = {"x": self.steps, "y": [_short(value) for value in self.values]}
        if self.band:
            shown |= {"lo": [_short(v) for v in self.low], "hi": [_short(v) for v in self.high], "band": self.band}
        return shown


def read_series(run: Path) -> dict[str, Series]:
    """Every metric of the run by name. A line that a crash cut off is left out; a metric that a step logs twice has the
    newer value."""
    points = _points(run / FILE)
    found: dict[str, Series] = {}
    bounds = {name for name in points if name.endswith(("_low", "_high")) and name.rpartition("_")[0] in points}
    for name, by_step in sorted(points.items()):
        if name in bounds:
            continue
        steps = sorted(by_step)
        series = found[name] = Series(steps, [by_step[step] for step in steps])
        stem = name.removesuffix("/mean")
        if f"{name}_low" in bounds and f"{name}_high" in bounds:
            series.low, series.high = (_at(points[f"{name}_{end}"], steps) for end in ("low", "high"))
            series.band = "interval"
        elif stem != name and f"{stem}/min" in points and f"{stem}/max" in points:
            series.low, series.high = (_at(points[f"{stem}/{end}"], steps) for end in ("min", "max"))
            series.band = "range"
    return found


def with_reward_interval(series: dict[str, Series], episodes: Iterable[KeptEpisode]) -> None:
    """Give ``reward/mean`` a 95% interval from the kept episodes: Student's, over the means of the tasks of a step,
    because episodes of one task are alike. None for a step with fewer than two tasks."""
    reward = series.get("reward/mean")
    if reward is None:
        return
    by_task: dict[int, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in episodes:
        if one.kind == "train" and one.reward is not None:
            by_task[one.step][(one.domain, one.task_id)].append(one.reward)
    pairs = [_interval([fmean(values) for values in by_task[step].values()]) for step in reward.steps]
    if any(not math.isnan(low) for low, _ in pairs):
        reward.low, reward.high = [low for low, _ in pairs], [high for _, high in pairs]
        reward.band = "interval"


def _interval(means: list[float]) -> tuple[float, float]:
    if len(means) < 2:
        return math.nan, math.nan
    half = student_t_quantile(0.5 + LEVEL / 2, len(means) - 1) * stdev(means) / math.sqrt(len(means))
    return fmean(means) - half, fmean(means) + half


def _points(path: Path) -> dict[str, dict[int, float]]:
    points: dict[str, dict[int, float]] = defaultdict(dict)
    if not path.is_file():
        return points
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            if step is None or None in row.values():
                continue
            for name, text in row.items():
                value = None if name in ("step", "epoch") else _number(text)
                if value is not None:
                    points[name][int(step)] = value
    return points


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def _at(by_step: Mapping[int, float], steps: Iterable[int]) -> list[float]:
    return [by_step.get(step, math.nan) for step in steps]


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
