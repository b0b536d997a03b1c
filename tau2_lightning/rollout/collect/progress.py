"""Counts of a running collection, and the end of one with too many faults."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tau2_lightning.environment import waits_for_models
from tau2_lightning.errors import InfrastructureFault, TooManyFaults

TRACEBACK_CHARACTERS = 4000  # of the newest fault, the end of it


@dataclass
class DomainShare:
    """Episodes of one domain: planned, finished, excluded, and the causes of exclusions.

    ``before`` are those finished in the previous batch, which overlaps with this one in an asynchronous collection.
    They are counted too, because a fraction of the first few episodes of a batch would say little.
    """

    planned: int = 0
    finished: int = 0
    excluded: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    before: int = 0

    def exclude(self, fault: InfrastructureFault) -> None:
        """Count an episode that ended with ``fault``."""
        self.excluded += 1
        self.causes[fault.name] += 1

    @property
    def counted(self) -> int:
        """See `Progress.counted`."""
        return max(self.planned + self.before, self.finished + self.excluded)

    @property
    def why(self) -> str:
        """See `Progress.why_excluded`."""
        return _commonest(self.causes)


@dataclass
class Progress:
    """Counts of one collection, for the progress line and for the error at a deadline.

    Only the event loop's thread writes them; any thread may read. ``total``, ``started``, ``finished`` and ``excluded``
    are episodes; ``transfers`` are finished episodes that ended with a transfer to a human. ``causes`` counts the
    excluded ones by ``component:cause``; every change replaces it. ``batch`` is the number of episodes planned for one
    batch or validation; ``total`` also includes those that replace others, and those of later batches. ``domains`` has
    the counts of each domain.
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
    domains: dict[str, DomainShare] = field(default_factory=dict)

    def plan(self, domain: str, episodes: int) -> None:
        """Count ``episodes`` that are to be played in ``domain``."""
        self.domains.setdefault(domain, DomainShare()).planned += episodes

    def finish(self, domain: str) -> None:
        """Count an episode of ``domain`` that ended well."""
        self.finished += 1
        self.domains.setdefault(domain, DomainShare()).finished += 1

    def exclude(self, fault: InfrastructureFault, domain: str = "") -> None:
        """Count an episode of ``domain`` that ended with ``fault``."""
        self.excluded += 1
        self.causes = {**self.causes, fault.name: self.causes.get(fault.name, 0) + 1}
        self.domains.setdefault(domain, DomainShare()).exclude(fault)

    def too_many(self, fraction: float) -> str | None:
        """A sentence if more than ``fraction`` of the episodes of the batch, or of one domain among several, are
        excluded; else None."""
        if self.excluded > fraction * self.counted:
            return f"{self.excluded} of {self.counted} episodes are excluded{self.why_excluded}"
        for name, share in self.domains.items() if len(self.domains) > 1 else ():
            if share.excluded > fraction * share.counted:
                return f"{share.excluded} of {share.counted} episodes of {name} are excluded{share.why}"
        return None

    @property
    def counted(self) -> int:
        """The number that exclusions are compared with: the planned episodes, or the ended ones if these are more."""
        return max(self.batch, self.finished + self.excluded)

    @property
    def reward(self) -> float | None:
        """Mean reward of the finished episodes, None without any."""
        return self.reward_sum / self.finished if self.finished else None

    def rebase(self) -> None:
        """Reset the counts; only running episodes stay counted."""
        ended = self.finished + self.excluded
        self.total, self.started = self.total - ended, self.started - ended
        self.finished = self.excluded = self.sampled_tokens = self.transfers = 0
        self.reward_sum, self.causes = 0.0, {}
        self.domains = {
            name: DomainShare(share.planned - share.finished - share.excluded, before=share.finished)
            for name, share in self.domains.items()
        }

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
        return _commonest(self.causes)


def together(counts: Sequence[Progress]) -> Progress:
    """The sums of ``counts``, those of the domains that are validated; of a single one, itself."""
    if len(counts) == 1:
        return counts[0]
    whole = Progress("validate")
    for one in counts:
        for name in ("started", "finished", "total", "batch", "reward_sum", "sampled_tokens", "transfers", "excluded"):
            setattr(whole, name, getattr(whole, name) + getattr(one, name))
        whole.causes = Counter(whole.causes) + Counter(one.causes)
        whole.domains |= one.domains
    return whole


def too_many_faults(progress: Progress, what: str, allowed: float, newest: InfrastructureFault) -> TooManyFaults:
    """The error of a collection of which more than the fraction ``allowed`` is excluded. ``what``: see `too_many`."""
    trace = "".join(traceback.format_exception(newest.__cause__ or newest))[-TRACEBACK_CHARACTERS:]
    return TooManyFaults(
        f"{what}, more than rollout.max_fault_fraction={allowed:g} allows in one {progress.phase}. Fix the cause, or "
        f"raise that value (1: stop only when nothing was played). The newest fault is {newest}\n{trace}"
    )


def _commonest(causes: Mapping[str, int]) -> str:
    commonest = Counter(causes).most_common(3)
    return f" ({', '.join(f'{cause} {n}' for cause, n in commonest)})" if commonest else ""
