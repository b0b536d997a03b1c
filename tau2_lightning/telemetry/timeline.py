"""``logs/phases.csv``: one line for each phase of a run, ``start,phase,began,ended``, times in Unix seconds."""

from __future__ import annotations

import csv
from collections import deque
from pathlib import Path
from typing import NamedTuple

FILE = Path("logs") / "phases.csv"


class Span(NamedTuple):
    """A phase between two Unix times. ``start`` is the number of the start of the run."""

    start: int
    phase: str
    began: float
    ended: float


class Timeline:
    """Appends to the file of the run at ``root``, line by line: a crash loses the phases since the last append."""

    def __init__(self, root: Path, start: int) -> None:
        self._path, self._start = root / FILE, start

    def append(self, spans: deque[tuple[str, float, float]]) -> None:
        """Write ``spans`` (phase, began, ended) and empty them. A full disk costs the lines, not the run."""
        lines = [(self._start, phase, f"{began:.3f}", f"{ended:.3f}") for phase, began, ended in spans]
        spans.clear()
        if not lines:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", newline="") as file:
                csv.writer(file).writerows(lines)
        except OSError:
            return


def read_timeline(root: Path) -> list[Span]:
    """The phases of the run at ``root`` in the order of their ends; a line that was cut off is left out."""
    path = root / FILE
    if not path.is_file():
        return []
    found = []
    with path.open(newline="") as file:
        for row in csv.reader(file):
            try:
                start, phase, began, ended = row
                found.append(Span(int(start), phase, float(began), float(ended)))
            except ValueError:
                continue
    return found
