"""The validated scores of a run: the first, the newest and the best pass^1, over all starts of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.telemetry.record import earlier

from .retention import score_name

RECORD = "metrics"


class Score(NamedTuple):
    """pass^1 of the weights after ``step`` batches, with its 95% interval (None where it is not known)."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class Scores:
    """The validations of a run, oldest first."""

    all: list[Score] = field(default_factory=list)

    @classmethod
    def of_earlier_starts(cls, folder: RunFolder) -> Self:
        """Those that ``metrics.csv`` holds of the batches that this start goes on from."""
        found = cls()
        for row in earlier(folder.root / RECORD, folder.batches_done, validates=folder.validates):
            found.add(int(row.get("step", 0)), row)
        return found

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the score among ``metrics``, if there is one."""
        name = score_name(metrics)
        if name is not None:
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            self.all.append(Score(step, float(metrics[name]), low, high))

    @property
    def best(self) -> Score | None:
        """The highest score; of equal ones the newest."""
        return max(reversed(self.all), key=lambda score: score.value, default=None)

    @property
    def change(self) -> float | None:
        """The newest score less the first one; None before the second."""
        return self.all[-1].value - self.all[0].value if len(self.all) > 1 else None

    def summary(self) -> dict[str, float]:
        """The numbers that sum a run up: ``best/pass^1`` and the like; empty before the first validation."""
        if self.best is None:
            return {}
        first, newest = self.all[0], self.all[-1]
        found = {
            "best/pass^1": self.best.value,
            "best/step": float(self.best.step),
            "start/pass^1": first.value,
            "newest/pass^1": newest.value,
        }
        return found if self.change is None else found | {"change/pass^1": self.change}
