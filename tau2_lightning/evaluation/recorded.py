"""Evaluations as files hold them: a run's ``report.json``, or a tau2 results file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .intervals import Estimate
from .pass_hat import pass_hat_k_estimate, trials_by_task

# The evaluation of a report that is compared unless one is named: the first of these that it holds.
PREFERRED = ("after", "score", "before")


@dataclass(frozen=True)
class Recorded:
    """An evaluation of one domain. ``trials`` are (successes, finished trials) by task id; ``stamp`` is that of its
    `EvaluationStamp.payload`, empty in files of earlier versions; ``excluded`` counts episodes lost to faults, None
    where the file does not tell."""

    name: str
    domain: str
    stamp: Mapping[str, Any]
    trials: Mapping[str, tuple[int, int]]
    excluded: int | None = None

    @property
    def episodes(self) -> int:
        """Finished episodes."""
        return sum(trials for _, trials in self.trials.values())

    @property
    def max_k(self) -> int:
        """The largest k of which a task has enough trials, 4 at most."""
        return min(4, max((trials for _, trials in self.trials.values()), default=0))

    def pass_hat(self, k: int) -> Estimate:
        """pass^k over the tasks with at least k trials."""
        return pass_hat_k_estimate([[True] * won + [False] * (n - won) for won, n in self.trials.values()], k)


def read_recorded(path: Path, evaluation: str | None = None) -> dict[str, Recorded]:
    """The evaluation in ``path``, by domain: a run's folder (its newest report), a ``report.json`` or a results file.

    ``evaluation`` names one of a report: ``before``, ``after`` or ``score``. Raises ConfigError for anything else.
    """
    file = _newest_report(path) if path.is_dir() else path
    content = _read(file)
    if isinstance(content, dict) and "evaluations" in content:
        return _of_report(file, content["evaluations"], evaluation)
    if isinstance(content, dict) and "simulations" in content:
        return _of_results(file, content)
    raise _wrong(path, "holds neither a report nor tau2's results")


def read_evaluations(run: Path) -> dict[str, dict[str, Recorded]]:
    """The evaluations of a run's newest report, by name (``before``, ``after``, ``score``) and domain.

    Raises ConfigError where ``run`` has no report, or one of another form.
    """
    file = _newest_report(run)
    content = _read(file)
    evaluations = content.get("evaluations") if isinstance(content, dict) else None
    if not isinstance(evaluations, Mapping):
        raise _wrong(file, "is malformed: evaluations is no mapping")
    names = dict.fromkeys(key.partition("/")[0] for key in evaluations)
    return {name: _of_report(file, evaluations, name) for name in names}


def _newest_report(folder: Path) -> Path:
    reports = {int(match[1] or 1): path for path in folder.glob("report*.json") if (match := _REPORT.match(path.name))}
    if not reports:
        raise _wrong(folder, "holds no report.json: the run has not ended")
    return reports[max(reports)]


_REPORT = re.compile(r"report(?:-(\d+))?\.json$")


def _of_report(file: Path, evaluations: Mapping[str, Any], wanted: str | None) -> dict[str, Recorded]:
    """The keys of a report are ``after``, or ``after/<domain>`` in a run of several domains."""
    if not isinstance(evaluations, Mapping):
        raise _wrong(file, "is malformed: evaluations is no mapping")
    names = list(dict.fromkeys(key.partition("/")[0] for key in evaluations))
    chosen = wanted or next((name for name in PREFERRED if name in names), None)
    if chosen not in names:
        raise _wrong(file, f"holds no evaluation {chosen or ''}; it has: {', '.join(names) or 'none'}")
    found = {}
    for key, one in evaluations.items():
        if key.partition("/")[0] == chosen:
            place = f"evaluations.{key}."
            domain = str(_at(file, one, "domain", within=place))
            counts = _at(file, one, "trials", within=place) if "trials" in one else {}
            lost = _at(file, one, "summary.excluded", within=place)
            with _named(file, f"{place}trials or summary.excluded"):
                trials = {task: (int(won), int(n)) for task, (won, n) in counts.items()}
                if not all(0 <= won <= n for won, n in trials.values()):
                    raise ValueError(f"more successes than trials, or less than none, in {trials}")
                excluded = sum(lost.values())
            name = f"{file.parent.name} ({chosen})"
            found[domain] = Recorded(name, domain, _stamp(file, one, place), trials, excluded)
    return found


def _stamp(file: Path, node: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """The stamp in ``node``; empty without one."""
    stamp = node.get("stamp") or {}
    if not isinstance(stamp, Mapping):
        raise _wrong(file, f"has a {place}stamp of another form: {stamp!r:.40} is no mapping")
    return stamp


def _of_results(file: Path, content: Mapping[str, Any]) -> dict[str, Recorded]:
    """A results file; the episodes that tau2 cannot replay are beside it."""
    domain = str(_at(file, content, "info.environment_info.domain_name"))
    scored = _scored(file, content)
    apart = file.with_suffix(".not_replayable.json")
    if apart.is_file():
        scored += _scored(apart, _read(apart))
    return {domain: Recorded(file.name, domain, _stamp(file, content, ""), trials_by_task(scored))}


def _scored(file: Path, content: Any) -> list[tuple[str, float]]:
    """(task id, reward) of each simulation."""
    runs = _at(file, content, "simulations")
    with _named(file, "simulations"):
        return [
            (
                str(_at(file, run, "task_id", within=f"simulations.{number}.")),
                float((run.get("reward_info") or {}).get("reward") or 0.0),
            )
            for number, run in enumerate(runs)
        ]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _wrong(file, f"cannot be read: {error}") from error


def _at(file: Path, node: Any, dotted: str, within: str = "") -> Any:
    """The value of the ``dotted`` key in ``node``, which ``file`` holds at ``within``."""
    for key in dotted.split("."):
        if not isinstance(node, Mapping) or key not in node:
            raise _wrong(file, f"has no key {within}{dotted}")
        node = node[key]
    return node


@contextmanager
def _named(file: Path, key: str) -> Iterator[None]:
    """Turns the errors of values that have another form into a ConfigError that names ``key``."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise _wrong(file, f"has a {key} of another form: {error}") from error


def _wrong(path: Path, problem: str) -> ConfigError:
    remedy = "Give a run's folder, its report.json, or a file of its results/"
    return ConfigError([Violation("report", str(path), problem, remedy)])
