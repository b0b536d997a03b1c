"""What a run leaves that must not depend on faults: its weights and its metrics, to the bit."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

SHOWN = 5
#: Metrics of how long something took, or of what else was going on. All others follow from the seed.
OF_TIME = ("time/", "perf/", "idle/", "queue/", "engine/", "system/", "memory/", "batch/episode_seconds/")


def weights_of(run: Path) -> str:
    """A digest of the weights that the run ended with."""
    return hashlib.sha256((run / "policy" / "model.safetensors").read_bytes()).hexdigest()


def metrics_of(run: Path) -> dict[tuple[str, str], str]:
    """Every number of the run's record by step and name, as it is written; without those `OF_TIME`.

    AssertionError where a step has a number twice.
    """
    found: dict[tuple[str, str], str] = {}
    with (run / "metrics" / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch") and not name.startswith(OF_TIME):
                    assert (row["step"], name) not in found, f"twice in the record: {name} of step {row['step']}"
                    found[row["step"], name] = value
    return found


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Where two runs differ that should be the same run, in words; of the metrics the first few."""
    found = [] if weights_of(run) == weights_of(undisturbed) else ["other weights"]
    mine, theirs = metrics_of(run), metrics_of(undisturbed)
    others = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    for step, name in others[:SHOWN]:
        there = theirs.get((step, name))
        found.append(f"{name} of step {step}: {mine.get((step, name))} instead of {there}")
    return found + [f"{len(others) - SHOWN} more numbers"] * (len(others) > SHOWN)


def total(run: Path, name: str) -> float:
    """The sum of a metric over all steps of a run."""
    return sum(float(value) for (_, metric), value in metrics_of(run).items() if metric == name)
