"""Collection during training: bound, conservation, faults and latencies, with a fake runner and a fake trainer."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault, ScoreDisagreement
from tau2_lightning.rollout.collect.collector import Collector, CollectPlan
from tau2_lightning.rollout.collect.overlapped import AsyncCollector
from tau2_lightning.rollout.collect.staleness import StalenessScheduler
from tau2_lightning.trajectory import Rollout, Trajectory, Turn
from tests.rollout.collect.virtual_time import VirtualTimePolicy


@pytest.fixture(scope="module")
def event_loop_policy() -> VirtualTimePolicy:
    """Use virtual time: seconds in these tests order events, but pass at once."""
    return VirtualTimePolicy()


@dataclass(frozen=True)
class Task:
    task_id: str


class FakeEngine:
    """Holds the weight version that tokens are labelled with."""

    version = 0


class FakeRunner:
    """Plays episodes of ``turns`` tokens; each token has the version of the engine at the time it is sampled.

    ``reward(task number, sample)`` is a float, None for a fault, or an exception to raise.
    """

    def __init__(self, engine, reward=lambda task, sample: float(sample % 2), delay=lambda task: 0.0, turns=3):
        self.engine, self.reward, self.delay, self.turns = engine, reward, delay, turns
        self.running = self.most = 0
        self.finished: Counter[str] = Counter()

    async def run(self, request):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            number = int(request.task_id)
            versions = [-1]
            for _ in range(self.turns):
                await asyncio.sleep(self.delay(number))
                versions.append(self.engine.version)
            reward = self.reward(number, request.sample)
            if reward is None:
                raise InfrastructureFault("user", "timeout")
            if isinstance(reward, Exception):
                raise reward
            size = len(versions)
            row = Trajectory.of(range(size), np.zeros(size, np.float32), np.array(versions, np.int32), (Turn(1, size),))
            self.finished[request.task_id] += 1
            return Rollout(request.task_id, request.group_id, request.sample, reward, (row,))
        finally:
            self.running -= 1


def numbered() -> Iterator[Task]:
    return (Task(str(i)) for i in itertools.count())


@asynccontextmanager
async def collecting(runner, plan, *, bound, tasks=None, max_concurrent=64, **options):
    ahead = AsyncCollector(
        Collector(runner, max_concurrent=max_concurrent), tasks or numbered(), plan,
        max_head_offpolicyness=bound, **options,
    )  # fmt: skip
    ahead.start()
    try:
        yield ahead
    finally:
        await ahead.close()
        assert runner.running == 0, "an episode still runs after close"


def versions_of(collection) -> list[int]:
    rows = [row for group in collection.groups for rollout in group.rollouts for row in rollout.trajectories]
    return [int(v) for row in rows for v in row.versions[row.loss_mask]]


async def play(ahead: AsyncCollector, runner: FakeRunner, steps: int, train: float = 0.0) -> list:
    """Act as the trainer: take a batch, train, publish, and repeat. Check the bound at every step."""
    taken = []
    for version in range(ahead.version, ahead.version + steps):
        batch = await ahead.take(deadline=10)
        taken.append(batch)
        assert all(version - ahead._scheduler.bound <= v <= version for v in versions_of(batch))
        await asyncio.sleep(train)
        runner.engine.version = version + 1
        await asyncio.sleep(0)  # episodes may use new weights before the collector gets their version
        ahead.advance(version + 1)
    return taken


@pytest.mark.parametrize("seed", range(40))
async def test_bound_and_conservation_under_random_latencies_and_faults(seed):
    rng = random.Random(seed)
    bound, n_groups, refill = rng.choice([0, 1, 2, 4]), rng.randint(1, 4), rng.choice([0, 3])
    stragglers, faulty, flat = rng.choice(["wait", "drop"]), rng.choice([0.0, 0.3]), rng.choice([0.0, 0.4])
    fate: dict[int, str] = {}

    def reward(task: int, sample: int):
        kind = fate.setdefault(task, "flat" if rng.random() < flat else "signal")
        return None if rng.random() < faulty else float(sample % 2 if kind == "signal" else 1)

    runner = FakeRunner(FakeEngine(), reward, lambda task: rng.random() * (0.02 if rng.random() < 0.1 else 0.002))
    plan = CollectPlan(n_groups, 4, max_refill=refill)
    concurrent = rng.choice([3, 64])
    async with collecting(runner, plan, bound=bound, stragglers=stragglers, max_concurrent=concurrent) as ahead:
        taken = await play(ahead, runner, 15, train=0.004)
        used = [group.task_id for batch in taken for group in batch.all_groups]
        assert len(set(used)) == len(used), "a group was used twice"
        c = ahead._scheduler.counters
        assert c["consumed"] == 15 * n_groups, "every batch must consume n_groups groups, with or without signal"
        outstanding = ahead._scheduler.outstanding
        assert c["admitted"] == sum(c[k] for k in ("consumed", "dropped_stale", "no_signal", "lost")) + outstanding
        told = [task.task_id for batch in taken for task in batch.tasks.values()]
        accounts = Counter([*told, *(task.task_id for task in ahead.unfinished)])
        assert accounts == Counter(map(str, range(c["admitted"]))), "each task is in one batch's account, or unfinished"
        assert all({group.group_id for group in batch.all_groups} <= batch.tasks.keys() for batch in taken)
        assert not {task.task_id for task in ahead.unfinished} & set(used)
        assert sum(batch.queue.dropped for batch in taken) <= c["dropped_stale"]
        if stragglers == "wait":
            assert c["dropped_stale"] == 0
        for batch in taken:
            assert len(batch.groups) <= n_groups and all(group.has_signal for group in batch.groups)
            assert len(batch.dropped) + batch.lost >= n_groups - len(batch.groups)


async def test_episodes_go_on_while_training_runs_and_across_updates():
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.1 if task in (2, 3) else 0.01)
    async with collecting(runner, CollectPlan(2, 2), bound=1) as ahead:
        batch = await ahead.take(deadline=5)
        await asyncio.sleep(0.1)  # training
        assert runner.running > 0 and batch.queue.running > 0
        runner.engine.version = 1
        ahead.advance(1)
        versions = versions_of(await ahead.take(deadline=5))
        assert set(versions) == {0, 1}, "episodes that run during the update must continue with the new weights"


async def test_with_bound_zero_nothing_runs_during_training():
    runner = FakeRunner(FakeEngine())
    async with collecting(runner, CollectPlan(2, 2), bound=0) as ahead:
        await ahead.take(deadline=5)
        for _ in range(20):
            await asyncio.sleep(0.001)
            assert runner.running == 0 and ahead.unfinished == []


async def test_episodes_go_on_while_training_runs_as_far_as_the_bound_allows():
    played = {}
    for bound in (0, 2):
        runner = FakeRunner(FakeEngine(), delay=lambda task: 0.005)
        async with collecting(runner, CollectPlan(2, 2), bound=bound) as ahead:
            await ahead.take(deadline=5)
            await asyncio.sleep(0.3)  # the trainer trains and takes no batch
            played[bound] = runner.finished.total()
    batch = 2 * 2
    assert played == {0: batch, 2: 3 * batch}


async def test_groups_without_signal_are_replaced_and_then_keep_their_place():
    runner = FakeRunner(FakeEngine(), lambda task, sample: 0.0)  # every episode fails, so no group has a signal
    async with collecting(runner, CollectPlan(3, 2, max_refill=4), bound=1) as ahead:
        first, second = await play(ahead, runner, 2)
    assert first.groups == second.groups == ()
    assert len(first.dropped) == 3 + 4, "refills must be bounded: if all episodes fail, the batch is empty"
    assert ahead._scheduler.counters["no_signal"] >= 4 and ahead._scheduler.counters["consumed"] == 6
    both = [group.task_id for group in (*first.dropped, *second.dropped)]
    assert len(set(both)) == len(both)


async def test_a_group_that_was_replaced_is_unfinished_until_a_batch_tells_of_it():
    """A run that is killed in between has it in no record: a resumed one must play its task again."""
    runner = FakeRunner(
        FakeEngine(), lambda task, sample: 1.0 if task == 2 else float(sample), lambda task: 0.01 * (task > 1)
    )
    async with collecting(runner, CollectPlan(2, 2, max_refill=4), bound=1) as ahead:
        first = await ahead.take(deadline=5)
        await asyncio.sleep(0.1)  # training
        assert [task.task_id for task in first.tasks.values()] == ["0", "1"]
        assert ahead._scheduler.counters["no_signal"] == 1
        assert [task.task_id for task in ahead.unfinished] == ["2", "3", "4"]
        runner.engine.version = 1
        ahead.advance(1)
        second = await ahead.take(deadline=5)
        assert [group.task_id for group in second.dropped] == ["2"]
        assert [task.task_id for task in second.tasks.values()] == ["2", "3", "4"]
        assert not {"2", "3", "4"} & {task.task_id for task in ahead.unfinished}


async def test_exclusions_are_counted_with_the_batch_that_tells_of_their_group():
    runner = FakeRunner(FakeEngine(), lambda task, sample: None if task == 3 and sample == 0 else float(sample % 2))
    async with collecting(runner, CollectPlan(2, 4), bound=1) as ahead:
        first = await ahead.take(deadline=5)
        await asyncio.sleep(0.1)  # training; the group of task 3 ends
        assert not first.excluded
        runner.engine.version = 1
        ahead.advance(1)
        assert dict((await ahead.take(deadline=5)).excluded) == {"user:timeout": 1}


async def test_an_engine_that_is_gone_ends_in_lost_groups_not_in_a_loop():
    runner = FakeRunner(FakeEngine(), lambda task, sample: None)
    async with collecting(runner, CollectPlan(2, 2, max_refill=1), bound=1) as ahead:
        batch = await ahead.take(deadline=5)
    assert batch.groups == () and batch.lost >= 3
    assert batch.excluded["user:timeout"] >= 6
    assert runner.finished == Counter()


async def test_filter_off_keeps_groups_without_signal():
    runner = FakeRunner(FakeEngine(), lambda task, sample: 1.0)
    async with collecting(runner, CollectPlan(3, 2, filter_groups=False), bound=1) as ahead:
        batch = await ahead.take(deadline=5)
    assert len(batch.groups) == 3 and batch.dropped == ()


async def test_too_old_groups_are_given_up_oldest_first_counted_and_cancelled():
    slow = {0, 1}
    runner = FakeRunner(FakeEngine(), delay=lambda task: 60.0 if task in slow else 0.0)
    async with collecting(runner, CollectPlan(1, 2), bound=1, stragglers="drop") as ahead:
        slow.discard(1)
        taken = await play(ahead, runner, 4)
        assert ahead._scheduler.counters["dropped_stale"] == 1
        assert sum(batch.queue.dropped for batch in taken) == 1
        assert "0" not in {group.task_id for batch in taken for group in batch.groups}
        assert Task("0") not in ahead.unfinished
        assert len(runner.finished) >= 4


async def test_waiting_for_stragglers_loses_no_long_dialogue():
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.05 if task == 0 else 0.0)
    async with collecting(runner, CollectPlan(1, 2), bound=1) as ahead:
        taken = await play(ahead, runner, 3)
    assert "0" in {group.task_id for batch in taken for group in batch.groups}
    assert ahead._scheduler.counters["dropped_stale"] == 0


@pytest.mark.parametrize("error", [ScoreDisagreement("fast 1.0, official 0.0"), ZeroDivisionError("a defect")])
async def test_what_fails_in_the_background_surfaces_at_the_next_take(error):
    runner = FakeRunner(
        FakeEngine(), lambda task, sample: error if task == 4 else float(sample), lambda task: 0.05 * (task > 3)
    )
    async with collecting(runner, CollectPlan(2, 2), bound=2) as ahead:
        await ahead.take(deadline=5)
        await asyncio.sleep(0.3)
        assert runner.running == 0, "the other episodes must be cancelled"
        for _ in range(2):  # every later take raises it again
            with pytest.raises(type(error), match=str(error)) as raised:
                await ahead.take(deadline=5)
        assert "playing task 4" in "".join(raised.value.__notes__)


async def test_an_infrastructure_fault_of_the_collection_itself_keeps_its_component():
    def ends_badly():
        yield from (Task(str(i)) for i in range(3))
        raise InfrastructureFault("environment", "tasks", "the task server is gone")

    async with collecting(FakeRunner(FakeEngine()), CollectPlan(2, 2), bound=2, tasks=ends_badly()) as ahead:
        with pytest.raises(InfrastructureFault, match="environment: tasks"):
            await ahead.take(deadline=5)


async def test_tokens_of_older_weights_than_the_engine_was_given_stop_the_run():
    engine = FakeEngine()
    engine.version = 3
    async with collecting(FakeRunner(engine), CollectPlan(1, 2), bound=1, version=7) as ahead:
        with pytest.raises(InfrastructureFault, match="engine: weight version"):
            await ahead.take(deadline=5)


async def test_the_deadline_names_who_is_waited_for():
    runner = FakeRunner(FakeEngine(), delay=lambda task: 60.0 if task == 1 else 0.0)
    async with collecting(runner, CollectPlan(2, 2, max_refill=0), bound=1, max_concurrent=4) as ahead:
        await ahead.take(deadline=5)
        runner.engine.version = 1
        ahead.advance(1)
        with pytest.raises(DeadlineExceeded, match=r"collector: timeout.* waiting for task 1 \(rollout: "):
            await ahead.take(deadline=0.1)


async def test_closing_ends_everything_and_leaves_the_unfinished_tasks():
    runner = FakeRunner(FakeEngine(), delay=lambda task: 60.0 if task > 1 else 0.0)
    async with collecting(runner, CollectPlan(2, 2), bound=1) as ahead:
        batch = await ahead.take(deadline=5)
        await asyncio.sleep(0.01)
        assert runner.running == 4
        await ahead.close()
        await ahead.close()
        assert runner.running == 0
        used = [group.task_id for group in batch.groups]
        assert used == ["0", "1"] and [task.task_id for task in ahead.unfinished] == ["2", "3"]
        with pytest.raises(InfrastructureFault, match="collector: closed"):
            await ahead.take(deadline=1)


async def test_validation_shares_the_collector_without_mixing_or_deadlock():
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.01)
    async with collecting(runner, CollectPlan(2, 2), bound=2, max_concurrent=2) as ahead:
        await ahead.take(deadline=5)
        admitted = ahead._scheduler.counters["admitted"]
        with ahead.held():
            validation = [Task("900"), Task("901")]
            rollouts, excluded = await ahead.collector.evaluate(validation, 3, deadline=5)
            progress = ahead.collector.progress
            assert (progress.phase, progress.finished, progress.total) == ("validate", 6, 6)
            await asyncio.sleep(0.1)  # running groups finish; no new one may start
            assert ahead._scheduler.counters["admitted"] == admitted and runner.running == 0
        assert [r.task_id for r in rollouts] == ["900"] * 3 + ["901"] * 3 and not excluded
        taken = await play(ahead_at(ahead, 1, runner), runner, 3)
        assert not {"900", "901"} & {group.task_id for batch in taken for group in batch.groups}
        assert ahead._scheduler.counters["admitted"] > admitted


def ahead_at(ahead: AsyncCollector, version: int, runner: FakeRunner) -> AsyncCollector:
    runner.engine.version = version
    ahead.advance(version)
    return ahead


async def test_progress_counts_what_is_under_way():
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.01)
    async with collecting(runner, CollectPlan(2, 2), bound=1, max_concurrent=64) as ahead:
        await play(ahead, runner, 3)
        p = ahead.progress
        assert p.started - p.finished - p.excluded == runner.running
        assert p.total >= p.started >= 0 and p.phase == "rollout"


class Careless(StalenessScheduler):
    """A control: gives out all finished groups, at any age."""

    def drop_stale(self):
        return ()

    def _fresh(self, group):
        return True

    @property
    def capacity(self) -> int:
        return max(0, 12 - self.outstanding)


async def test_the_check_of_the_bound_can_fail():
    """Negative control: without the scheduler's rules the same trainer gets tokens that are too old."""
    runner = FakeRunner(FakeEngine())
    async with collecting(runner, CollectPlan(1, 2), bound=1) as ahead:
        ahead._scheduler = Careless(batch_size=1, max_head_offpolicyness=1)
        with pytest.raises(AssertionError):
            await play(ahead, runner, 8, train=0.01)


async def test_a_fault_rate_of_a_fifth_changes_counts_not_the_mean_reward():
    """Faults are independent of the reward. With 1600 episodes the standard error of the mean is 0.0125."""

    def means(rate: float):
        rng, luck = random.Random(1), random.Random(2)

        def reward(task: int, sample: int):
            value = float(rng.random() < 0.4)
            return None if luck.random() < rate else value

        return reward

    found = {}
    for rate in (0.0, 0.2):
        runner = FakeRunner(FakeEngine(), means(rate))
        async with collecting(runner, CollectPlan(20, 8, filter_groups=False), bound=1, max_concurrent=999) as ahead:
            taken = await play(ahead, runner, 10)
        rewards = [r for batch in taken for group in batch.all_groups for r in group.rewards]
        found[rate] = float(np.mean(rewards)), sum(sum(batch.excluded.values()) for batch in taken), len(rewards)
    assert found[0.0][1] == 0 and found[0.0][2] == 1600
    assert abs(found[0.2][1] / (found[0.2][1] + found[0.2][2]) - 0.2) < 0.04
    assert abs(found[0.2][0] - found[0.0][0]) < 4 * 0.0125
    # Control: if faults counted as zeros, the mean would move outside of this interval.
    assert abs(0.8 * found[0.2][0] - found[0.0][0]) > 4 * 0.0125
