"""Counts of a running collection, and the end of one with too many faults."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tau2_lightning.environment import waits_for_models
from tau2_lightning.errors import InfrastructureFault, TooManyFaults

TRACEBACK_CHARACTERS = 4000  # of the newest fault, the end of it


@dataclass
class Progress:
    """Counts of one collection, for the progress line and for the error at a deadline.

    Only the event loop's thread writes them; any thread may read. ``total``, ``started``, ``finished`` and ``excluded``
    are episodes; ``transfers`` are finished episodes that ended with a transfer to a human. ``causes`` counts the
    excluded ones by ``component:cause``; it is replaced at every change. ``batch`` is the number of episodes that were
    planned for one batch or validation; ``total`` has also those that replace others, and those of batches to come.
    """

    phase: str = "idle"
    started: int = 0
    finished: int = 0
    total: int = 0
    batch: int = 0
    reward_sum: float = 0.0
    sampled_tokens: int = 0
    transfers: int = 0
    excluded: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)

    def exclude(self, fault: InfrastructureFault) -> None:
        """Count an episode that ended with ``fault``."""
        self.excluded += 1
        self.causes = {**self.causes, fault.name: self.causes.get(fault.name, 0) + 1}

    def too_many(self, fraction: float) -> bool:
        """Whether more than ``fraction`` of the batch is excluded."""
        return self.excluded > fraction * self.counted

    @property
    def counted(self) -> int:
        """The episodes of which a share may be excluded: those planned, or those that have ended if they are more."""
        return max(self.batch, self.finished + self.excluded)

    @property
    def reward(self) -> float:
        """Mean reward of the finished episodes, 0 without any."""
        return self.reward_sum / self.finished if self.finished else 0.0

    def rebase(self) -> None:
        """Reset the counts; only running episodes stay counted."""
        ended = self.finished + self.excluded
        self.total, self.started = self.total - ended, self.started - ended
        self.finished = self.excluded = self.sampled_tokens = self.transfers = 0
        self.reward_sum, self.causes = 0.0, {}

    def describe(self) -> str:
        """One line of text for the screen."""
        text = (
            f"{self.phase}: {self.finished} of {self.total} episodes finished, "
            f"{self.started - self.finished - self.excluded} running, {self.excluded} excluded{self.why_excluded}"
        )
        waits = waits_for_models()
        return f"{text}; {waits}" if waits else text

    @property
    def why_excluded(self) -> str:
        """`` (workflow:ValueError 3, engine:crash 1)``, the three commonest causes; empty without an exclusion."""
        commonest = Counter(self.causes).most_common(3)
        return f" ({', '.join(f'{cause} {n}' for cause, n in commonest)})" if commonest else ""


def too_many_faults(progress: Progress, allowed: float, newest: InfrastructureFault) -> TooManyFaults:
    """The error of a collection in which more than the share ``allowed`` of the episodes is excluded."""
    told = "".join(traceback.format_exception(newest.__cause__ or newest))[-TRACEBACK_CHARACTERS:]
    return TooManyFaults(
        f"{progress.excluded} of {progress.counted} episodes are excluded{progress.why_excluded}, more than "
        f"rollout.max_fault_fraction={allowed:g} allows in one {progress.phase}. Mend the cause, or raise that value "
        f"(1: never stop). The newest fault is {newest}\n{told}"
    )
