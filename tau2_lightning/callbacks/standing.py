"""Where a run stands, in short words for the screen: built up from the metrics of batches and validations."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.telemetry.memory import device_bytes, sampled
from tau2_lightning.telemetry.record import earlier

from .scores import RECORD, Scores

if TYPE_CHECKING:
    import torch

WINDOW = 20  # newest steps that the time left is computed from
ERRORS = "dispatcher/errored/"


@dataclass
class Standing:
    """``step`` batches are done of ``total`` (infinite where only time ends the run); ``newest`` are the metrics of the
    newest one, ``rewards`` those of all, ``excluded`` counts episodes by cause; ``device`` is rank 0's."""

    step: int = 0
    total: float = math.inf
    rewards: list[float] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)
    excluded: Counter[str] = field(default_factory=Counter)
    newest: Mapping[str, float] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic
    device: torch.device | None = None
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))

    def go_on(self, folder: RunFolder) -> None:
        """Take what earlier starts of the run have recorded."""
        self.step, self.scores = folder.batches_done, Scores.of_earlier_starts(folder)
        for row in earlier(folder.root / RECORD, folder.batches_done, validates=folder.validates):
            self._count(row)

    def begin(self, step: int, total: float) -> None:
        """Training begins after ``step`` batches."""
        self.step, self.total = step, total
        self._ends.clear()
        self._ends.append(self.now())

    def batch(self, step: int, total: float, metrics: Mapping[str, float]) -> None:
        """A batch was trained on: there are ``step`` now."""
        self.step, self.total, self.newest = step, total, dict(metrics)
        self._ends.append(self.now())
        self._count(metrics)

    def _count(self, metrics: Mapping[str, float]) -> None:
        if "reward/mean" in metrics:
            self.rewards.append(metrics["reward/mean"])
        for name, value in metrics.items():
            cause = name.removeprefix(ERRORS)
            if cause not in (name, "all") and value:
                self.excluded[cause] += int(value)

    # -- in words -----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> str:
        """``4/6``, or ``4`` for a run without a planned end."""
        return f"{self.step}" + ("" if math.isinf(self.total) else f"/{self.total:.0f}")

    @property
    def seconds_left(self) -> float | None:
        """The steps to come, at the pace of the newest ones with the validations between them; None where unknown."""
        if len(self._ends) < 2 or math.isinf(self.total):
            return None
        pace = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return max(0.0, pace * (self.total - self.step) - (self.now() - self._ends[-1]))

    @property
    def left(self) -> str:
        """``ETA 1 h 23 min``; empty where it is unknown, and at the end."""
        seconds = self.seconds_left
        return "" if seconds is None or self.step >= self.total else f"ETA {duration(seconds)}"

    @property
    def score(self) -> str:
        """``0.310 [0.250, 0.380], +0.120 since the start, best 0.330 after step 10``; empty before a validation."""
        if self.scores.best is None:
            return ""
        newest, best, change = self.scores.all[-1], self.scores.best, self.scores.change
        words = f"{newest.value:.3f}"
        if newest.low is not None and newest.high is not None:
            words += f" [{newest.low:.3f}, {newest.high:.3f}]"
        if change is not None:
            words += f", {change:+.3f} since the start"
        return words if best.value <= newest.value else f"{words}, best {best.value:.3f} after step {best.step}"

    @property
    def _short_score(self) -> str:
        if not self.scores.all:
            return ""
        change = self.scores.change
        return f"{self.scores.all[-1].value:.3f}" + ("" if change is None else f" ({change:+.3f})")

    @property
    def signal(self) -> str:
        """``0.62 of 24``: of the newest batch, the share of groups whose rewards differ, and all that were played."""
        none, played = (self.newest.get(name) for name in ("frac_reward_zero_std", "groups/collected"))
        return "-" if none is None else f"{1 - none:.2f}" + ("" if played is None else f" of {played:.0f}")

    @property
    def staleness(self) -> str:
        """The age of the oldest tokens of the newest batch's episodes, in versions: mean and maximum."""
        mean, most = (self.newest.get(f"batch/staleness/{name}") for name in ("mean", "max"))
        return "-" if mean is None or most is None else f"{mean:.1f} (max {most:.0f})"

    @property
    def faults(self) -> str:
        """``3 (engine:crash 2, user:timeout 1)``: the episodes that faults excluded in the whole run."""
        causes = ", ".join(f"{cause} {count}" for cause, count in self.excluded.most_common())
        return f"{self.excluded.total()} ({causes})" if causes else "0"

    def number(self, name: str, form: str) -> str:
        """A metric of the newest batch; ``-`` where it has none."""
        return format(self.newest[name], form) if name in self.newest else "-"

    def line(self) -> str:
        """One line about the newest batch."""
        values = {
            "reward": self.number("reward/mean", ".3f"),
            "pass^1": self._short_score,
            "signal": self.signal,
            "transfer": self.number("transfer_rate", ".2f"),
            "turns": self.number("effective/num_turns/mean", ".1f"),
            "tok/s": self.number("perf/rollout_tokens_per_second", ".0f"),
            "staleness": self.staleness,
            "excluded": self.faults,
            "entropy": self.number("entropy/all/mean", ".3f"),
            "clip": self.number("clip_ratio/region_mean", ".3f"),
            "grad": self.number("optim/grad_norm", ".2f"),
            "rollout": f"{self.number('time/rollout', '.1f')}s",
            "train": f"{self.number('time/forward_backward', '.1f')}s",
            "memory": memory_in_words(self.device),
        }
        told = [f"{name} {value}" for name, value in values.items() if value]
        return "  ".join(filter(None, [f"step {self.steps}", self.left, *told]))


def memory_in_words(device: torch.device | None = None) -> str:
    """``12.3 GiB (peak 14.0)`` of this run and its children, and of a GPU what all processes use; empty where nobody
    samples it."""
    found, used = sampled(), device_bytes(device)
    words = [] if found is None else [f"{found.now / 2**30:.1f} GiB (peak {found.peak / 2**30:.1f})"]
    if used is not None:
        words.append(f"{device} {used[0] / 2**30:.1f} of {used[1] / 2**30:.1f} GiB")
    return ", ".join(words)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``1 h 23 min``, ``2 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
