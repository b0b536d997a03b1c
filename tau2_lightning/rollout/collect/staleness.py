"""The bound on staleness: it decides when a group of episodes may start, and which groups make the next batch.

This is a state machine without clock, thread or I/O, which the collector drives. Versions count published weights. A
batch that is trained at version v may hold tokens of versions v - max_head_offpolicyness and newer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

Stragglers = Literal["wait", "drop"]


@dataclass
class _Entry:
    order: int
    oldest: int  # version of its oldest token; while it runs, the version at which it was admitted
    finished: bool = False


class StalenessScheduler:
    """Admission and consumption of groups under a bound on the age of the oldest token.

    A group is outstanding while it runs or waits to be trained. At most ``batch_size * (bound + 1)`` groups are
    outstanding, and one batch fewer while the current version's batch is being trained. So all groups admitted at
    version v fit into the batches up to version v + bound. With ``stragglers="wait"`` a batch waits for running groups
    for which later batches would have no room in time (earliest deadline first), and no group is given up for its age.
    ``"drop"`` never waits: groups that became too old are given up oldest first, and counted. With bound 0 no group
    starts while training runs, which is exactly synchronous.

    ``counters`` has ``admitted``, ``consumed``, ``dropped_stale`` and the reasons given to ``discard``;
    admitted = the sum of the others + ``outstanding``.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        max_head_offpolicyness: int,
        max_running: int | None = None,
        stragglers: Stragglers = "wait",
        version: int = 0,
    ) -> None:
        if batch_size < 1 or max_head_offpolicyness < 0 or (max_running is not None and max_running < 1):
            raise ValueError("batch_size and max_running must be at least 1, max_head_offpolicyness at least 0")
        self.batch_size, self.bound, self.max_running = batch_size, max_head_offpolicyness, max_running
        self.stragglers, self.version = stragglers, version
        self.counters: Counter[str] = Counter()
        self._entries: dict[Hashable, _Entry] = {}
        self._taken_at: int | None = None  # the version whose batch has been taken

    @property
    def outstanding(self) -> int:
        """Groups running or waiting to be trained."""
        return len(self._entries)

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished."""
        return sum(not entry.finished for entry in self._entries.values())

    @property
    def capacity(self) -> int:
        """Groups that may be admitted now."""
        batches = self.bound + (self._taken_at != self.version)
        room = self.batch_size * batches - self.outstanding
        if self.max_running is not None:
            room = min(room, self.max_running - self.running)
        return max(room, 0)

    def admit(self, group: Hashable) -> int:
        """Start ``group`` at the current version, which is returned. Raises RuntimeError without capacity or twice."""
        if group in self._entries:
            raise RuntimeError(f"group {group!r} is in progress already")
        if self.capacity == 0:
            raise RuntimeError(f"no capacity for group {group!r} at version {self.version}")
        self._entries[group] = _Entry(self.counters["admitted"], self.version)
        self.counters["admitted"] += 1
        return self.version

    def finish(self, group: Hashable, oldest_version: int | None = None) -> None:
        """``group`` is complete and may be trained. ``oldest_version`` is that of its tokens, or of its admission.

        Raises KeyError for a group that is not running, ValueError for a version outside its life.
        """
        entry = self._entries[group]
        if entry.finished:
            raise KeyError(group)
        if oldest_version is not None:
            if not entry.oldest <= oldest_version <= self.version:
                raise ValueError(
                    f"group {group!r} has tokens of version {oldest_version}, but lived from version {entry.oldest} "
                    f"to {self.version}"
                )
            entry.oldest = oldest_version
        entry.finished = True

    def discard(self, group: Hashable, reason: str) -> None:
        """Remove ``group``, running or not, because it has no signal, lost its episodes, ...; counted as ``reason``."""
        del self._entries[group]
        self.counters[reason] += 1

    def drop_stale(self) -> tuple[Hashable, ...]:
        """Give up the groups that are too old for any batch, oldest first; the caller cancels those that run."""
        stale = [g for g in self._oldest_first() if self.version - self._entries[g].oldest > self.bound]
        for group in stale:
            self.discard(group, "dropped_stale")
        return tuple(stale)

    @property
    def waiting_for(self) -> tuple[Hashable, ...]:
        """Running groups that the current version's batch must wait for."""
        return self._blocking(self._chosen())

    def take(self) -> tuple[Hashable, ...] | None:
        """The groups of the current version's batch, oldest first; None while they are not ready.

        Raises RuntimeError when the batch of this version was taken already: call ``advance`` when its weights are out.
        """
        if self._taken_at == self.version:
            raise RuntimeError(f"the batch of version {self.version} has been taken")
        batch = self._chosen()
        if len(batch) < self.batch_size or self._blocking(batch):
            return None
        for group in batch:
            del self._entries[group]
        self.counters["consumed"] += len(batch)
        self._taken_at = self.version
        return batch

    def _chosen(self) -> tuple[Hashable, ...]:
        """The oldest finished groups that are fresh enough, at most one batch."""
        return tuple(g for g in self._oldest_first() if self._entries[g].finished and self._fresh(g))[: self.batch_size]

    def _blocking(self, batch: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
        """Running groups that this batch must wait for, because later batches have no room in time for all groups that
        ``batch`` leaves.

        A group whose oldest token is of version o can be trained up to version o + bound. For every k, there is room
        after this batch for ``batch_size * k`` of the groups that must be trained within the next k batches.
        """
        if self.stragglers == "drop":
            return ()
        left = [g for g in self._oldest_first() if g not in batch]
        for count, group in enumerate(left, start=1):
            batches = self._entries[group].oldest + self.bound - self.version
            if count > self.batch_size * batches:
                return tuple(g for g in left[:count] if not self._entries[g].finished)
        return ()

    def advance(self, version: int) -> tuple[Hashable, ...]:
        """New weights are published; returns the groups that became too old (see ``drop_stale``). Versions grow."""
        if version <= self.version:
            raise ValueError(f"version {version} does not follow version {self.version}")
        self.version = version
        return self.drop_stale()

    def _fresh(self, group: Hashable) -> bool:
        return self.version - self._entries[group].oldest <= self.bound

    def _oldest_first(self) -> list[Hashable]:
        return sorted(self._entries, key=lambda g: (self._entries[g].oldest, self._entries[g].order))
