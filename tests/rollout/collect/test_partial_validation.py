"""A validation with a time limit keeps what is finished and says what is missing; it never shows a wrong pass^k."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tau2_lightning.environment import TaskRef
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault, TooManyFaults
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.rollout.collect.collector import Collector, CollectPlan
from tau2_lightning.rollout.collect.concurrently import within
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.rollout.collect.validation import LATE
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import Rollout


def task(name: str, domain: str = "telecom") -> TaskRef:
    return TaskRef(domain, "test", name, False, "")


class Runner:
    """Solves every episode after ``seconds(task, sample)``; None never ends, an exception is raised."""

    def __init__(self, seconds: Any) -> None:
        self.seconds, self.running = seconds, 0

    async def run(self, request: Any) -> Rollout:
        self.running += 1
        try:
            wait = self.seconds(request.task, request.sample)
            if isinstance(wait, Exception):
                raise wait
            await asyncio.sleep(60 if wait is None else wait)
        finally:
            self.running -= 1
        return Rollout(request.task_id, request.group_id, request.sample, 1.0, ())


def collector(runner: Runner, **more: Any) -> Collector:
    return Collector(runner, max_concurrent=50, **more)  # type: ignore[arg-type]


async def test_what_is_finished_is_kept_and_the_rest_counts_as_late() -> None:
    runner = Runner(lambda task, sample: None if (task.task_id, sample) in {("a", 1), ("c", 0), ("c", 1)} else 0.01)
    found = collector(runner)
    rollouts, excluded = await found.evaluate(list(map(task, "abc")), 2, deadline=0.5, partial=True)
    assert [(r.task_id, r.sample) for r in rollouts] == [("a", 0), ("b", 0), ("b", 1)]
    assert excluded == {LATE: 3} and LATE == "validation:timeout"
    assert [(late.task_id, late.sample, late.cause) for late in found.late] == [
        ("a", 1, LATE), ("c", 0, LATE), ("c", 1, LATE),
    ]  # fmt: skip
    assert runner.running == 0, "late episodes must be cancelled"


async def test_without_partial_the_deadline_is_an_error() -> None:
    with pytest.raises(DeadlineExceeded, match="1 of 2 episodes finished"):
        await collector(Runner(lambda task, sample: None if sample else 0.01)).evaluate([task("a")], 2, deadline=0.3)


async def test_a_validation_that_ends_in_time_is_whole() -> None:
    rollouts, excluded = await collector(Runner(lambda *_: 0.01)).evaluate([task("a")], 3, deadline=20, partial=True)
    assert len(rollouts) == 3 and not excluded


async def test_faults_beside_late_ones_keep_their_causes() -> None:
    fault = InfrastructureFault("user", "timeout")
    runner = Runner(lambda task, sample: (0.01, fault, None)[sample])
    _, excluded = await collector(runner).evaluate([task("a")], 3, deadline=0.3, partial=True)
    assert excluded == {"user:timeout": 1, LATE: 1}


def test_pass_k_of_a_part_is_told_three_ways_and_marked() -> None:
    config = load_config(["domain=retail"], check=False)
    played = [Rollout("a", "0", 0, 1.0, ()), Rollout("b", "1", 0, 1.0, ()), Rollout("b", "1", 1, 1.0, ())]
    found = Evaluation.of("retail", "test", 2, played, {LATE: 3}, config, tasks=["a", "b", "c"])
    rows = dict(found.table_rows())
    assert rows["PARTIAL"] == "3 of 6 episodes played"
    assert [rows[f"pass^1, excluded {way}"][:5] for way in ("left out", "as failures", "as successes")] == [
        "1.000", "0.500", "1.000",
    ]  # fmt: skip
    assert [rows[f"pass^2, excluded {way}"][:5] for way in ("left out", "as failures", "as successes")] == [
        "1.000", "0.333", "1.000",
    ]  # fmt: skip
    scalars = {name.rpartition("test/")[2]: value for name, value in found.scalars().items()}
    assert (scalars["planned"], scalars["episodes"], scalars[f"excluded/{LATE}"]) == (6, 3, 3)
    whole = Evaluation.of("retail", "test", 1, played[:2], {}, config, tasks=["a", "b"])
    assert "PARTIAL" not in dict(whole.table_rows()) and not any("planned" in name for name in whole.scalars())


async def test_a_domain_that_is_lost_is_not_hidden_by_another() -> None:
    """Half of all episodes may be excluded; one domain of three loses all of its own."""
    fault = InfrastructureFault("user", "http_500")
    runner = Runner(lambda task, sample: fault if task.domain == "retail" else 0.01)
    tasks = [task("1"), task("2", "retail"), task("3", "airline")]
    plan = CollectPlan(3, 4, filter_groups=False)
    with pytest.raises(TooManyFaults, match=r"3 of 4 episodes of retail are excluded \(user:http_500 3\)"):
        await collector(runner, max_fault_fraction=0.5).collect(iter(tasks), plan, deadline=20)
    kept = await collector(runner, max_fault_fraction=1.0).collect(iter(tasks), plan, deadline=20)
    assert kept.excluded == {"user:http_500": 4} and {group.domain for group in kept.groups} == {"telecom", "airline"}


def test_the_count_of_domains_survives_a_batch() -> None:
    progress = Progress("rollout", batch=8)
    progress.plan("a", 4)
    progress.plan("b", 4)
    progress.finish("a")
    progress.exclude(InfrastructureFault("user", "x"), "b")
    progress.rebase()
    assert {name: (share.planned, share.before) for name, share in progress.domains.items()} == {
        "a": (3, 1),
        "b": (3, 0),
    }
    assert progress.too_many(0.0) is None
    progress.exclude(InfrastructureFault("user", "x"), "a")
    assert progress.too_many(0.25) is None and "1 of 4 episodes of a" in str(progress.too_many(0.2))


async def test_within_cancels_the_others_at_a_failure() -> None:
    ended = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await within([hang(), fail()], 30)
    assert ended == [True]
    assert await within([], 1) == []
