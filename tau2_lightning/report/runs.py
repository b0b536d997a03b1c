"""One run as the page shows it, apart from its dialogues."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.evaluation.stamp import differences
from tau2_lightning.rollout_files.files import read_stamps
from tau2_lightning.rollout_files.names import FOLDER, kept_files
from tau2_lightning.telemetry.timeline import Span, read_timeline

from .series import FILE, Series, read_series


@dataclass
class RunData:
    """What is known of a run: metrics by name, phases in time, stamps by what they are of, the end of its report."""

    root: Path
    name: str
    series: dict[str, Series]
    timeline: list[Span]
    stamps: dict[str, Mapping[str, Any]]
    seconds: Mapping[str, float] = field(default_factory=dict)
    notices: Sequence[str] = ()
    ended: bool = False

    def payload(self) -> dict[str, Any]:
        """JSON-able."""
        began = min((span.began for span in self.timeline), default=0.0)
        return {
            "name": self.name,
            "path": str(self.root),
            "series": {name: series.payload() for name, series in self.series.items()},
            "began": began,
            "phases": [
                [span.phase, round(span.began - began, 3), round(span.ended - began, 3), span.start]
                for span in self.timeline
            ],
            "stamps": self.stamps,
            "seconds": dict(self.seconds),
            "notices": list(self.notices),
            "ended": self.ended,
        }


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders at ``paths``; the folder of a sweep or of an experiment stands for the runs in it.

    Raises ConfigError that names every path that holds none.
    """
    found: list[Path] = []
    wrong: list[Violation] = []
    for path in paths:
        inside = [path] if _is_run(path) else sorted(_runs_in(path))
        if not inside:
            problem = "holds no run: it has neither metrics/metrics.csv nor rollouts/"
            remedy = "Give the folder of a run, <output_dir>/<experiment_name>/<trial_name>"
            wrong.append(Violation("RUN", str(path), problem, remedy))
        found += [one for one in inside if one not in found]
    if wrong:
        raise ConfigError(wrong)
    return found


def read_run(root: Path, name: str) -> RunData:
    """Read everything but the episodes."""
    report = _newest_report(root)
    stamps: dict[str, Mapping[str, Any]] = {}
    newest = {kept.kind: path for kept, path in kept_files(root / FOLDER)}
    for kind, path in newest.items():
        for domain, stamp in _stamps(path).items():
            stamps[f"{'training' if kind == 'train' else 'validation'} {domain}".strip()] = stamp
    for one, evaluation in (report.get("evaluations") or {}).items():
        if evaluation.get("stamp"):
            stamps.setdefault(f"validation {evaluation.get('domain', one)}", evaluation["stamp"])
    return RunData(
        root,
        name,
        read_series(root),
        read_timeline(root),
        stamps,
        seconds=report.get("seconds") or {},
        notices=report.get("notices") or (),
        ended=bool(report),
    )


def names_of(roots: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    for depth in range(1, 8):
        names = ["/".join(root.resolve().parts[-depth:]) for root in roots]
        if len(set(names)) == len(names):
            return names
    return [str(root.resolve()) for root in roots]


def stamp_differences(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """What the stamps of the runs differ in, for each thing that more than one run has a stamp of."""
    found = []
    for label in dict.fromkeys(label for run in runs for label in run.stamps):
        having = [run for run in runs if label in run.stamps]
        first = having[0]
        for other in having[1:]:
            if changed := differences(first.stamps[label], other.stamps[label]):
                found.append({"of": label, "runs": [first.name, other.name], "fields": changed})
    return found


def _is_run(path: Path) -> bool:
    return (path / FILE).is_file() or (path / FOLDER).is_dir()


def _runs_in(folder: Path, depth: int = 2) -> Iterator[Path]:
    """The runs of a sweep, or of an experiment with its sweeps."""
    for child in folder.iterdir() if folder.is_dir() and depth else ():
        if _is_run(child):
            yield child
        else:
            yield from _runs_in(child, depth - 1)


def _stamps(path: Path) -> dict[str, Any]:
    try:
        return read_stamps(path)
    except OSError:  # it made room for newer ones
        return {}


def _newest_report(root: Path) -> dict[str, Any]:
    reports = sorted(root.glob("report*.json"), key=lambda path: path.stat().st_mtime)
    try:
        content = json.loads(reports[-1].read_text()) if reports else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
