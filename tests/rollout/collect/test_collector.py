"""Groups, filters, refills, faults and deadlines, with a fake runner instead of real episodes."""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.collect.collector import Collector, CollectPlan
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.trajectory import Rollout, Trajectory, Turn
from tests.rollout.proxy.rig import until


@dataclass(frozen=True)
class Task:
    task_id: str


def row() -> Trajectory:
    return Trajectory.of([1, 2], np.zeros(2, np.float32), np.array([-1, 0], np.int32), (Turn(1, 2),))


class FakeRunner:
    """A runner whose rewards are ``reward(task number, sample)``; None raises a fault."""

    def __init__(self, reward, delay=0.0):
        self.reward, self.delay = reward, delay
        self.seen, self.running, self.most = [], 0, 0

    async def run(self, request):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay)
            self.seen.append((request.task_id, request.sample, request.seed))
            reward = self.reward(int(request.task_id), request.sample)
            if reward is None:
                raise InfrastructureFault("engine", "crash")
            return Rollout(request.task_id, request.group_id, request.sample, reward, (row(),))
        finally:
            self.running -= 1


def collector_of(runner: FakeRunner, **options: Any) -> Collector:
    return Collector(cast("EpisodeRunner", runner), **options)


def tasks():
    return (Task(str(i)) for i in itertools.count())


async def test_groups_without_signal_are_replaced_by_the_next_tasks():
    runner = FakeRunner(lambda task, sample: float(sample % 2) if task >= 3 else float(task == 0))
    collector = collector_of(runner, max_concurrent=100)
    result = await collector.collect(tasks(), CollectPlan(4, 4, filter_groups=True, max_refill=8), deadline=5)
    assert [group.task_id for group in result.groups] == ["3", "4", "5", "6"]
    assert sorted(group.task_id for group in result.dropped) == ["0", "1", "2"]


async def test_refills_are_bounded():
    runner = FakeRunner(lambda task, sample: 0.0)
    result = await collector_of(runner, max_concurrent=100).collect(
        tasks(), CollectPlan(4, 2, filter_groups=True, max_refill=3), deadline=5
    )
    assert result.groups == ()
    assert len(result.dropped) == 7


async def test_filter_off_keeps_every_group():
    result = await collector_of(FakeRunner(lambda t, s: 0.0), max_concurrent=9).collect(
        tasks(), CollectPlan(3, 2, filter_groups=False, max_refill=5), deadline=5
    )
    assert len(result.groups) == 3
    assert not result.dropped


async def test_faults_are_excluded_and_counted_never_a_reward():
    runner = FakeRunner(lambda task, sample: None if sample == 0 else float(sample % 2))
    result = await collector_of(runner, max_concurrent=9).collect(tasks(), CollectPlan(3, 4), deadline=5)
    assert result.excluded == Counter({"engine:crash": 3})
    assert [group.rewards for group in result.groups] == [(1.0, 0.0, 1.0)] * 3


async def test_a_group_of_one_survivor_is_lost_and_counted():
    runner = FakeRunner(lambda task, sample: None if task == 0 and sample else float(sample))
    result = await collector_of(runner, max_concurrent=9).collect(tasks(), CollectPlan(2, 2, max_refill=1), deadline=5)
    assert result.lost == 1
    assert [group.task_id for group in result.groups] == ["1", "2"]


async def test_concurrency_is_bounded():
    runner = FakeRunner(lambda t, s: float(s), delay=0.01)
    await collector_of(runner, max_concurrent=5).collect(tasks(), CollectPlan(8, 4), deadline=10)
    assert runner.most == 5


async def test_at_the_deadline_episodes_that_run_are_excluded_and_no_group_is_begun():
    runner = FakeRunner(lambda t, s: 0.0, delay=60)
    found = await collector_of(runner, max_concurrent=9).collect(
        tasks(), CollectPlan(2, 2, max_refill=3), deadline=0.05
    )
    assert found.excluded == Counter({"batch:timeout": 4}) and found.lost == 2 and runner.running == 0


async def test_a_defect_is_not_swallowed_and_leaves_nobody_running():
    runner = FakeRunner(lambda task, sample: 1 / 0 if sample == 1 else 0.0, delay=0.01)
    collector = collector_of(runner, max_concurrent=9)
    with pytest.raises(ZeroDivisionError):
        await collector.collect(tasks(), CollectPlan(3, 2), deadline=5)
    await until(lambda: runner.running == 0)


async def test_every_episode_has_its_own_seed():
    runner = FakeRunner(lambda t, s: float(s))
    collector = collector_of(runner, max_concurrent=9, seed=7)
    await collector.collect(tasks(), CollectPlan(5, 4), deadline=5)
    seeds = [seed for _, _, seed in runner.seen]
    assert len(set(seeds)) == len(seeds) == 20


async def test_a_batch_follows_from_its_seed_whatever_ends_first():
    """Tasks, seeds, refills and the order of groups do not depend on how long episodes take."""

    async def collected(shuffle: int, seed: int = 7, step: int = 3):
        rng = random.Random(shuffle)
        seen: dict[tuple[str, int], int] = {}

        class Runner(FakeRunner):
            async def run(self, request):
                self.delay = rng.random() * 0.01
                seen[request.task_id, request.sample] = request.seed
                return await super().run(request)

        runner = Runner(lambda task, sample: float(sample == 0 and task % 3 != 0))
        result = await collector_of(runner, max_concurrent=9, seed=seed).collect(
            tasks(), CollectPlan(5, 3, max_refill=4, step=step), deadline=5
        )
        return [g.task_id for g in result.groups], [g.task_id for g in result.dropped], seen

    first = await collected(1)
    assert first[0] == ["1", "2", "4", "5", "7"] and first[1] == ["0", "3", "6"]
    for shuffle in range(2, 6):
        assert await collected(shuffle) == first
    for other in (await collected(1, seed=8), await collected(1, step=4)):
        assert not set(other[2].values()) & set(first[2].values())


async def test_a_retried_episode_and_every_validation_keep_their_seeds():
    seeds = []
    for _ in range(2):
        runner = FakeRunner(lambda t, s: float(s))
        await collector_of(runner, max_concurrent=9, seed=7).evaluate([Task("0"), Task("1")], 2, deadline=5)
        seeds.append(sorted(runner.seen))
    assert seeds[0] == seeds[1]
    training = FakeRunner(lambda t, s: float(s))
    await collector_of(training, max_concurrent=9, seed=7).collect(tasks(), CollectPlan(2, 2), deadline=5)
    assert not {seed for *_, seed in seeds[0]} & {seed for *_, seed in training.seen}


async def test_evaluation_plays_each_task_so_often_and_keeps_the_order():
    runner = FakeRunner(lambda task, sample: None if (task, sample) == (1, 2) else float(task))
    rollouts, excluded = await collector_of(runner, max_concurrent=3).evaluate(
        [Task("0"), Task("1"), Task("2")], 4, deadline=5
    )
    assert [r.task_id for r in rollouts] == ["0"] * 4 + ["1"] * 3 + ["2"] * 4
    assert excluded == Counter({"engine:crash": 1})


async def test_a_greedy_evaluation_asks_for_it_and_training_does_not():
    class Noting(FakeRunner):
        async def run(self, request):
            self.sampling = [*getattr(self, "sampling", []), request.sampling]
            return await super().run(request)

    runner = Noting(lambda task, sample: float(sample))
    collector = collector_of(runner, max_concurrent=9)
    await collector.evaluate([Task("0")], 2, deadline=5, sampling={"temperature": 0.0})
    await collector.collect(tasks(), CollectPlan(1, 2), deadline=5)
    assert runner.sampling == [{"temperature": 0.0}] * 2 + [{}] * 2
