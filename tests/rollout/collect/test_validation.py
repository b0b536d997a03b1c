"""The domains of a validation are played at the same time, and each has what it would have alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tau2_lightning.environment import TaskRef
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault, TooManyFaults
from tau2_lightning.rollout.collect.collector import Collector
from tau2_lightning.rollout.collect.validation import LATE, Part, PlayedPart, in_turns
from tau2_lightning.trajectory import Rollout

FAULT = InfrastructureFault("user", "http_500")
Ends = Callable[[TaskRef, int], float | Exception | None]


class Runner:
    """Ends every episode after ``ends(task, sample)`` seconds; None never, an exception is raised at once."""

    def __init__(self, ends: Ends = lambda task, sample: 0.01) -> None:
        self.ends = ends
        self.running: list[str] = []  # the domain of each
        self.seen: list[list[str]] = []  # ``running`` at the start of each episode
        self.seeds: dict[tuple[str, str, int], tuple[int, Any]] = {}

    async def run(self, request: Any) -> Rollout:
        task, sample = request.task, request.sample
        self.seeds[task.domain, task.task_id, sample] = request.seed, request.sampling
        self.running.append(task.domain)
        self.seen.append(list(self.running))
        try:
            ends = self.ends(task, sample)
            if isinstance(ends, Exception):
                raise ends
            await asyncio.sleep(60 if ends is None else ends)
        finally:
            self.running.remove(task.domain)
        return Rollout(request.task_id, request.group_id, sample, float(len(task.domain) + sample), ())


def tasks(domain: str, count: int) -> list[TaskRef]:
    return [TaskRef(domain, "test", str(number), False, "") for number in range(count)]


def collector(runner: Runner, concurrent: int = 50, **more: Any) -> Collector:
    return Collector(runner, max_concurrent=concurrent, seed=3, **more)  # type: ignore[arg-type]


def told(played: PlayedPart) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    return [(r.task_id, r.group_id, r.sample, r.reward) for r in played.rollouts], dict(played.excluded)


async def test_each_domain_has_the_episodes_and_results_that_it_has_alone() -> None:
    def ends(task: TaskRef, sample: int) -> float | Exception:
        return FAULT if (task.domain, sample) == ("retail", 1) else 0.002 * int(task.task_id)

    parts = [
        Part(tasks("telecom", 3), 2), Part(tasks("retail", 4), 3, {"temperature": 0.0}, timeout=20.0),
        Part(tasks("airline", 1), 1),
    ]  # fmt: skip
    runner, alone = Runner(ends), Runner(ends)
    together = await collector(runner).evaluate_parts(parts, deadline=20)
    for part, played in zip(parts, together, strict=True):
        (own,) = await collector(alone).evaluate_parts([part], deadline=20)
        assert told(own) == told(played)
    assert runner.seeds == alone.seeds and len(runner.seeds) == 6 + 12 + 1
    assert together[1].excluded == {"user:http_500": 4} and len(together[1].rollouts) == 8
    assert max(map(len, runner.seen)) >= 15, "all at the same time, apart from four that fail at once"


async def test_the_limit_on_concurrent_episodes_is_one_for_all() -> None:
    runner = Runner()
    parts = [Part(tasks("telecom", 6), 2), Part(tasks("retail", 3), 2)]
    await collector(runner, concurrent=3).evaluate_parts(parts, deadline=20)
    assert max(map(len, runner.seen)) == 3
    assert {"telecom", "retail"} in map(set, runner.seen)


async def test_a_time_limit_cuts_off_all_domains_alike_and_none_altogether() -> None:
    runner = Runner(lambda task, sample: None if int(task.task_id) > 1 else 0.01)
    found = collector(runner, concurrent=2)
    parts = [Part(tasks("telecom", 8), 1, timeout=0.5), Part(tasks("retail", 4), 1, timeout=0.5)]
    first, second = await found.evaluate_parts(parts, deadline=20)
    assert len(first.rollouts) == 2 and first.excluded == {LATE: 6}
    assert len(second.rollouts) >= 1, "it had its turn"
    assert sum(one.domain == "telecom" for one in found.late) == 6
    assert sum(one.domain == "retail" for one in found.late) == second.excluded[LATE] == 4 - len(second.rollouts)
    assert runner.running == []


async def test_each_domain_has_its_own_time_limit() -> None:
    runner = Runner(lambda task, sample: None if task.domain == "retail" else 0.6)
    parts = [Part(tasks("retail", 2), 1, timeout=0.2), Part(tasks("telecom", 2), 1)]
    retail, telecom = await collector(runner).evaluate_parts(parts, deadline=20)
    assert retail.rollouts == [] and retail.excluded == {LATE: 2} and retail.failure is None
    assert len(telecom.rollouts) == 2 and not telecom.excluded


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (FAULT, TooManyFaults, "2 of 4 episodes are excluded.*in one validation of retail"),
        (ZeroDivisionError("a defect"), ZeroDivisionError, "a defect"),
    ],
)
async def test_what_ends_one_domain_loses_nothing_of_another(bad: Exception, error: Any, words: str) -> None:
    def ends(task: TaskRef, sample: int) -> float | Exception | None:
        if task.domain != "retail":
            return 0.1  # it is still played when retail has failed
        return (0.01, None, bad, bad)[int(task.task_id)]

    runner = Runner(lambda task, sample: ends(task, sample))
    found = collector(runner, max_fault_fraction=0.25)
    parts = [Part(tasks("telecom", 3), 2), Part(tasks("retail", 4), 1), Part(tasks("airline", 2), 1)]
    telecom, retail, airline = await found.evaluate_parts(parts, deadline=20)
    assert len(telecom.result()[0]) == 6 and len(airline.result()[0]) == 2 and not telecom.excluded
    with pytest.raises(error, match=words):
        retail.result()
    assert runner.running == [], "the others of its domain are cancelled"


async def test_of_a_domain_that_fails_what_was_finished_stays() -> None:
    bad = {"0": 0.01, "1": None, "2": FAULT, "3": FAULT}
    runner = Runner(lambda task, sample: bad[task.task_id])
    delayed = collector(runner, concurrent=1, max_fault_fraction=0.25)
    order = [TaskRef("retail", "test", name, False, "") for name in "0231"]
    (played,) = await delayed.evaluate_parts([Part(order, 1)], deadline=20)
    assert told(played) == ([("0", "0", 0, 6.0)], {"user:http_500": 1}) and isinstance(played.failure, TooManyFaults)


async def test_without_a_time_limit_the_deadline_is_the_error_of_its_domain_alone() -> None:
    runner = Runner(lambda task, sample: None if task.task_id == "1" else 0.01)
    parts = [Part(tasks("retail", 2), 1), Part(tasks("telecom", 2), 1, timeout=0.2)]
    retail, telecom = await collector(runner).evaluate_parts(parts, deadline=0.3)
    assert len(telecom.result()[0]) == 1 and telecom.excluded == {LATE: 1}
    with pytest.raises(DeadlineExceeded, match="validation of retail: 1 of 2 episodes finished"):
        retail.result()
    assert len(retail.rollouts) == 1 and not retail.excluded


async def test_progress_is_that_of_all_domains() -> None:
    fails: dict[str, float | Exception | None] = {"telecom": FAULT, "retail": 0.01}
    runner = Runner(lambda task, sample: fails[task.domain] if task.task_id == "0" else 0.4)
    found = collector(runner)
    parts = [Part(tasks("telecom", 3), 1), Part(tasks("retail", 2), 2)]
    playing = asyncio.ensure_future(found.evaluate_parts(parts, deadline=20))
    await asyncio.sleep(0.1)
    now = found.progress
    assert (now.phase, now.total, now.batch, now.started) == ("validate", 7, 7, 7)
    assert (now.finished, now.excluded, now.reward) == (2, 1, 6.5)
    assert now.causes == {"user:http_500": 1}
    assert {name: (d.planned, d.finished, d.excluded) for name, d in now.domains.items()} == {
        "telecom": (3, 0, 1), "retail": (4, 2, 0),
    }  # fmt: skip
    await playing
    assert (found.progress.finished, found.progress.excluded) == (6, 1)


async def test_a_cancelled_validation_leaves_nothing_running() -> None:
    runner = Runner(lambda task, sample: None)
    parts = [Part(tasks("telecom", 3), 1), Part(tasks("retail", 2), 2)]
    playing = asyncio.ensure_future(collector(runner).evaluate_parts(parts, deadline=20))
    await asyncio.sleep(0.05)
    assert len(runner.running) == 7
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert runner.running == []


def test_turns_are_shares_at_every_moment() -> None:
    counts = [12, 3, 0, 7]
    order = in_turns(counts)
    assert [order.count(part) for part in range(4)] == counts
    for played in range(1, len(order) + 1):
        for part, count in enumerate(counts):
            due = count * played / len(order)
            assert abs(order[:played].count(part) - due) <= 1.0, (played, part)
    assert in_turns([]) == in_turns([0]) == []
