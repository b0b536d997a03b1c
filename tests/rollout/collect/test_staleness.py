"""The scheduler under random latencies: bound, conservation, no starvation; and a control that breaks each rule."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.collect.staleness import StalenessScheduler


@dataclass
class Run:
    """The record of a simulated run."""

    staleness: list[int] = field(default_factory=list)
    consumed: list[Hashable] = field(default_factory=list)
    admitted: list[Hashable] = field(default_factory=list)
    dropped: list[Hashable] = field(default_factory=list)
    discarded: Counter = field(default_factory=Counter)
    overlapped: int = 0
    oldest_left: int = 0
    clock: float = 0.0

    def check(self, scheduler: StalenessScheduler) -> None:
        """Check bound, conservation and that no group starves."""
        assert max(self.staleness) <= scheduler.bound
        assert len(set(self.consumed)) == len(self.consumed), "a group was used twice"
        assert not set(self.dropped) & set(self.consumed)
        c = scheduler.counters
        booked = (c["admitted"], c["consumed"], c["dropped_stale"])
        assert booked == (len(self.admitted), len(self.consumed), len(self.dropped))
        assert {k: c[k] for k in self.discarded} == dict(self.discarded)
        accounted = c["consumed"] + c["dropped_stale"] + sum(self.discarded.values()) + scheduler.outstanding
        assert accounted == c["admitted"], "a group was lost"
        assert self.oldest_left <= scheduler.bound, "a group is left behind for good"


def simulate(scheduler: StalenessScheduler, seed: int, steps: int, tail: float, bad: float, train: float) -> Run:
    """Simulate by events: episodes with random (heavy-tailed) latencies, and training of at most ``train`` seconds."""
    rng = random.Random(seed)
    run = Run()
    events: list[tuple[float, int, str, int]] = []  # (time, tie, kind, group)
    first_token: dict[Hashable, int] = {}
    gone: set[Hashable] = set()
    counter = 0
    training_until: float | None = None
    while len(run.staleness) < steps * scheduler.batch_size:
        while scheduler.capacity:
            version = scheduler.admit(counter)
            run.admitted.append(counter)
            run.overlapped += training_until is not None
            first_token[counter] = version
            latency = rng.random() + (rng.paretovariate(1.2) if rng.random() < tail else 0.0)
            heapq.heappush(events, (run.clock + latency, counter, "finish", counter))
            counter += 1
        if training_until is None:
            batch = scheduler.take()
            if batch is not None:
                for group in batch:
                    run.staleness.append(scheduler.version - first_token[group])
                    run.consumed.append(group)
                training_until = run.clock + train * rng.random()
                heapq.heappush(events, (training_until, -1, "trained", -1))
                continue
        assert events, "starved: nothing runs, nothing may start, and there is no batch"
        run.clock, _, kind, group = heapq.heappop(events)
        if kind == "trained":
            training_until = None
            run.dropped += scheduler.advance(scheduler.version + 1)
            left = set(run.admitted) - set(run.consumed) - set(run.dropped) - gone
            run.oldest_left = max([run.oldest_left, *(scheduler.version - first_token[group] for group in left)])
        elif group not in run.dropped:
            chance = rng.random()
            if chance < bad:
                reason = "no_signal" if chance < bad / 2 else "excluded"
                scheduler.discard(group, reason)
                run.discarded[reason] += 1
                gone.add(group)
            else:
                # The first token may be sampled later than admission, after a wait in the engine's queue.
                first_token[group] = rng.choice([first_token[group], min(scheduler.version, first_token[group] + 1)])
                scheduler.finish(group, first_token[group])
    return run


settings_of_a_run = {
    "seed": st.integers(0, 2**32 - 1),
    "batch_size": st.integers(1, 5),
    "bound": st.integers(0, 4),
    "max_running": st.sampled_from([None, 1, 3]),
    "tail": st.sampled_from([0.0, 0.2, 1.0]),
    "bad": st.sampled_from([0.0, 0.3, 0.8]),
    "train": st.sampled_from([0.0, 1.0, 20.0]),
    "stragglers": st.sampled_from(["wait", "drop"]),
}


@settings(max_examples=150, deadline=None)
@given(**settings_of_a_run)
def test_bound_conservation_and_progress(seed, batch_size, bound, max_running, tail, bad, train, stragglers) -> None:
    scheduler = StalenessScheduler(
        batch_size=batch_size, max_head_offpolicyness=bound, max_running=max_running, stragglers=stragglers, version=3
    )
    run = simulate(scheduler, seed, steps=12, tail=tail, bad=bad, train=train)  # if it returns, no batch starved
    run.check(scheduler)
    if stragglers == "wait":
        assert run.dropped == [], "with `wait`, no group may be dropped for its age"
    if bound == 0:
        assert run.overlapped == 0, "with bound 0, no group may start while training runs"


def test_asynchronous_collection_overlaps_training() -> None:
    scheduler = StalenessScheduler(batch_size=3, max_head_offpolicyness=2)
    run = simulate(scheduler, seed=1, steps=20, tail=0.2, bad=0.2, train=3.0)
    assert run.overlapped > 0 and max(run.staleness) > 0


def test_long_episodes_are_not_starved_when_waiting() -> None:
    """The slowest group is consumed, because dropping it would bias training towards short dialogues."""
    waiting = StalenessScheduler(batch_size=2, max_head_offpolicyness=1)
    for group in ("slow", "a", "b", "c"):
        waiting.admit(group)
    waiting.finish("a")
    waiting.finish("b")
    assert waiting.take() == ("a", "b")  # the slow one still fits the next batch
    waiting.advance(1)
    waiting.admit("d")
    waiting.finish("c")
    waiting.finish("d")
    assert waiting.take() is None and waiting.waiting_for == ("slow",)
    waiting.finish("slow")
    assert waiting.take() == ("slow", "c")


def test_a_batch_leaves_room_for_all_stragglers_not_only_for_the_next() -> None:
    """A batch has one place, so for two slow groups waiting must begin one version before they expire."""
    s = StalenessScheduler(batch_size=1, max_head_offpolicyness=2)
    for group in ("a", "slow1", "slow2"):
        s.admit(group)
    s.finish("a")
    assert s.take() == ("a",)
    s.advance(1)
    s.admit("b")
    s.finish("b")
    assert s.take() is None and s.waiting_for == ("slow1", "slow2")
    s.finish("slow2")
    assert s.take() == ("slow2",)
    assert s.advance(2) == ()
    assert s.take() is None and list(s.waiting_for) == ["slow1"]
    s.finish("slow1")
    assert s.take() == ("slow1",)


def test_dropping_gives_up_the_oldest_and_counts_it() -> None:
    s = StalenessScheduler(batch_size=1, max_head_offpolicyness=1, stragglers="drop")
    s.admit("slow")
    s.admit("a")
    s.finish("a")
    assert s.take() == ("a",)
    assert s.advance(1) == ()
    s.admit("b")
    s.finish("b")
    assert s.take() == ("b",)
    assert s.advance(2) == ("slow",)
    assert s.counters["dropped_stale"] == 1


def test_after_a_jump_of_versions_finished_groups_are_dropped_oldest_first() -> None:
    s = StalenessScheduler(batch_size=2, max_head_offpolicyness=1)
    for group in "abcd":
        s.admit(group)
        s.finish(group)
    assert s.advance(5) == ("a", "b", "c", "d")
    assert s.outstanding == 0 and s.capacity == 4


class Greedy(StalenessScheduler):
    """A control: admits one batch too many."""

    @property
    def capacity(self) -> int:
        return super().capacity if self.max_running else max(0, self.batch_size * (self.bound + 3) - self.outstanding)

    def drop_stale(self):
        return ()

    def _fresh(self, group):
        return True


class Forgetful(StalenessScheduler):
    """A control: consumes a group and keeps it."""

    def take(self):
        entries = dict(self._entries)
        batch = super().take()
        if batch:
            self._entries[batch[0]] = entries[batch[0]]
        return batch


def _number(group: Hashable) -> int:
    assert isinstance(group, int)
    return group


class Lossy(StalenessScheduler):
    """A control: forgets a running group when versions change."""

    def advance(self, version):
        stale = super().advance(version)
        del self._entries[min(self._entries, key=_number)]
        return stale

    def finish(self, group, oldest_version=None):
        if group in self._entries:
            super().finish(group, oldest_version)


class Unfair(StalenessScheduler):
    """A control: takes the youngest groups and never waits or drops, so that slow groups are never taken."""

    def _chosen(self):
        done = [g for g in self._entries if self._entries[g].finished and self._fresh(g)]
        return tuple(sorted(done, key=lambda g: -self._entries[g].order))[: self.batch_size]

    def _blocking(self, batch):
        return ()

    def drop_stale(self):
        return ()


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [(Greedy, "<= 1"), (Forgetful, "used twice"), (Lossy, "lost"), (Unfair, "left behind")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_simulation_notices_what_it_is_meant_to_catch(kind, complaint) -> None:
    """Negative controls: bound, double use, loss and starvation."""
    scheduler = kind(batch_size=2, max_head_offpolicyness=1)
    run = simulate(scheduler, 0, 20, tail=0.2, bad=0.0, train=5.0)
    with pytest.raises(AssertionError, match=complaint):
        run.check(scheduler)


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"max_head_offpolicyness": -1}, {"max_running": 0}])
def test_impossible_settings_are_refused(arguments) -> None:
    with pytest.raises(ValueError):
        StalenessScheduler(**{"batch_size": 1, "max_head_offpolicyness": 0} | arguments)


def test_misuse_is_refused() -> None:
    s = StalenessScheduler(batch_size=1, max_head_offpolicyness=0)
    s.admit("a")
    with pytest.raises(RuntimeError, match="in progress"):
        s.admit("a")
    with pytest.raises(RuntimeError, match="no capacity"):
        s.admit("b")
    with pytest.raises(ValueError, match="version 9"):
        s.finish("a", 9)
    s.finish("a")
    with pytest.raises(KeyError):
        s.finish("a")
    assert s.take() == ("a",)
    with pytest.raises(RuntimeError, match="taken"):
        s.take()
    with pytest.raises(ValueError, match="follow"):
        s.advance(0)
