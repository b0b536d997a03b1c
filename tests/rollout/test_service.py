"""The service between collector, publisher and trainer, with fake parts and real event loops and threads."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.assembly import RunningParts
from tau2_lightning.rollout.collect.collector import Collector, CollectPlan
from tau2_lightning.rollout.collect.idle import IdleMeter
from tau2_lightning.rollout.collect.validation import Part
from tau2_lightning.rollout.engine.meter import EngineMeter
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.sync_round import SyncReport
from tau2_lightning.run.compose import load_config
from tests.rollout.collect.test_overlapped import FakeEngine, FakeRunner, numbered


class FakePublisher:
    """Sets the engine's weight version and records the modes."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.modes: list[str] = []

    async def publish(self, version: int, payload: Any, *, mode: str) -> SyncReport:
        await asyncio.sleep(0.005)
        self.engine.version = version
        self.modes.append(mode)
        return SyncReport(version, 10, {"total": 0.005})

    publish_adapter = publish


@pytest.fixture
def service_with(tmp_path):
    """Make a service with fake parts that its callers see as started."""
    made = []

    def make(runner: FakeRunner, bound: int) -> RolloutService:
        config = load_config([f"rollout.max_head_offpolicyness={bound}"], check=False)
        service = RolloutService(config, tmp_path, run_dir=tmp_path)

        async def wire() -> RunningParts:
            return RunningParts(
                pool=SimpleNamespace(),  # type: ignore[arg-type]
                runner=SimpleNamespace(faults=Counter({"user:timeout": 2})),  # type: ignore[arg-type]
                collector=Collector(runner, max_concurrent=8),  # type: ignore[arg-type]
                publisher=FakePublisher(runner.engine),  # type: ignore[arg-type]
                idle=IdleMeter(lambda: runner.running > 0),
                load=EngineMeter(EnginePool(EngineSettings(urls=("http://127.0.0.1:9",)))),
                opening=lambda: [1, 2, 3],
            )

        service._running = service._background.call(wire(), component="test", doing="wiring", timeout=5)
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


def steps(service: RolloutService, tasks, count: int):
    plan = CollectPlan(2, 2)
    for version in range(count):
        yield version, service.collect(tasks, plan)
        service.publish(version + 1, iter(()))


def test_taking_turns_waits_and_leaves_nothing_running(service_with):
    runner = FakeRunner(FakeEngine())
    service = service_with(runner, 0)
    for version, batch in steps(service, numbered(), 3):
        assert runner.running == 0
        assert {v for g in batch.groups for r in g.rollouts for v in r.trajectories[0].versions[1:]} == {version}
    assert service._parts.publisher.modes == ["wait"] * 3
    assert service.while_collecting(lambda unfinished: unfinished) == [] == service.end_collection()


def test_beside_training_weights_change_under_running_episodes(service_with):
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.01)
    service = service_with(runner, 2)
    seen, used = 0, []
    for version, batch in steps(service, numbered(), 5):
        for group in batch.groups:
            used.append(group.task_id)
            assert all(version - 2 <= r.oldest_version <= version for r in group.rollouts)
        seen += batch.queue.running + batch.queue.ready
    assert service._parts.publisher.modes == ["keep"] * 5
    assert seen > 0
    unfinished = [task.task_id for task in service.while_collecting(list)]
    assert unfinished and not set(unfinished) & set(used)
    ended = [task.task_id for task in service.end_collection()]
    assert set(unfinished) <= set(ended) and not set(ended) & set(used)
    assert runner.running == 0 and service.end_collection() == []


def test_a_validation_between_steps_ends_and_collection_goes_on(service_with):
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.01)
    service, tasks = service_with(runner, 1), numbered()
    for _, _batch in steps(service, tasks, 2):
        (played,) = service.evaluate([Part([SimpleNamespace(task_id="77")], 4)])
        rollouts, excluded = played.result()
        assert [r.task_id for r in rollouts] == ["77"] * 4 and not excluded
        assert service.progress.phase == "validate"
    assert service.collect(tasks, CollectPlan(2, 2)).groups


def test_the_domains_of_a_validation_are_played_at_the_same_time(service_with):
    runner = FakeRunner(FakeEngine(), delay=lambda task: 0.02)
    service = service_with(runner, 0)
    parts = [Part([SimpleNamespace(task_id="7")], 3), Part([SimpleNamespace(task_id="8")], 2, timeout=20.0)]
    played = service.evaluate(parts)
    assert [[r.task_id for r in part.result()[0]] for part in played] == [["7"] * 3, ["8"] * 2]
    assert runner.most == 5 and (service.progress.finished, service.progress.total) == (5, 5)


def test_training_can_begin_again_after_it_ended(service_with):
    runner = FakeRunner(FakeEngine())
    service, tasks = service_with(runner, 1), numbered()
    first = service.collect(tasks, CollectPlan(2, 2))
    service.end_collection()
    service.publish(9, iter(()))
    again = service.collect(tasks, CollectPlan(2, 2))
    assert service._ahead is not None and service._ahead.version == 9
    assert not {g.task_id for g in first.groups} & {g.task_id for g in again.groups}


def test_what_fails_while_training_runs_is_raised_by_the_next_collect(service_with):
    runner = FakeRunner(
        FakeEngine(), lambda task, sample: 1 / 0 if task == 2 else float(sample), lambda task: 0.02 * (task > 1)
    )
    service = service_with(runner, 1)
    tasks = numbered()
    service.collect(tasks, CollectPlan(2, 2))
    service.publish(1, iter(()))
    with pytest.raises(ZeroDivisionError):
        service.collect(tasks, CollectPlan(2, 2))


def test_both_publications_return_their_report(service_with, tmp_path):
    service = service_with(FakeRunner(FakeEngine()), 0)
    assert service.publish(1, iter(())).version == 1
    report = service.publish_adapter(2, tmp_path)
    assert (report.version, report.bytes, report.seconds) == (2, 10, {"total": 0.005})


class _SlowEngine:
    """Scores nothing in time; notes the deadlines that it gets."""

    settings = SimpleNamespace(on_cpu=True)

    def __init__(self) -> None:
        self.deadlines: list[float] = []

    async def score(self, token_ids: list[int], *, deadline: float) -> list[float]:
        self.deadlines.append(deadline)
        raise DeadlineExceeded("engine", deadline, f"scoring {len(token_ids):,} tokens on engine 0")


def test_long_rows_are_compared_in_the_time_of_their_tokens(service_with):
    """Two rows of 4,000 tokens on a CPU: not in the 300 s that a synchronisation may take."""
    service, engine = service_with(FakeRunner(FakeEngine()), 0), _SlowEngine()
    object.__setattr__(service._parts, "pool", engine)
    long = GuardRows([[1] * 4000] * 2, [[3999]] * 2)
    with pytest.raises(DeadlineExceeded, match=r"engine: timeout: .* 1000 s while scoring 4,000 tokens on engine 0"):
        service.check_parity(long, [[-1.0]] * 2)
    assert engine.deadlines == [8000 / (4 * 2.0)] * 2
    with pytest.raises(DeadlineExceeded, match="300 s"):
        service.check_parity(GuardRows.prompt([1] * 50), [[-1.0] * 32])


def test_faults_are_taken_once(service_with):
    service = service_with(FakeRunner(FakeEngine()), 0)
    assert service.take_retried() == {"user:timeout": 2}
    assert not service.take_retried()


def test_before_the_start_progress_says_so_and_calls_fail(tmp_path):
    service = RolloutService(load_config([], check=False), tmp_path, run_dir=tmp_path)
    try:
        assert service.progress.phase == "engine start"
        with pytest.raises(AssertionError, match="start"):
            service.take_retried()
    finally:
        service.close()


def test_failed_attempts_stay_until_a_batch_tells_of_their_group(service_with):
    service = service_with(FakeRunner(FakeEngine()), 1)
    of = [SimpleNamespace(purpose=purpose, group_id=group) for purpose in ("train", "validate") for group in "012"]
    service._parts.runner.failed, service._parts.collector.late = deque(of[:4]), deque(of[4:])
    assert service.take_failed("train", {"0", "2"}) == [of[0], of[2]]
    assert service.take_failed("train", {"0", "2"}) == [] and service.take_failed("validate") == of[3:]
    assert service.take_failed("train") == [of[1]]


@pytest.mark.parametrize("start", [30.0, 0.1])
def test_a_publication_may_wait_for_an_engine_that_restarts_with_its_weights(service_with, monkeypatch, start):
    """An engine that fails a step is restarted and waited for, for as long as the start of one may take."""
    monkeypatch.setattr("tau2_lightning.rollout.service.GRACE_SECONDS", 0.0)
    service = service_with(FakeRunner(FakeEngine()), 0)
    words = ["rollout.weight_sync.timeout=0.1", f"rollout.engine_start_timeout={start}"]
    service.config = load_config(words, check=False)

    async def restarting(version: int, payload: Any, *, mode: str) -> SyncReport:
        await asyncio.sleep(1.0)
        return SyncReport(version, 10, {"total": 1.0}, restarted=("engine 0",))

    monkeypatch.setattr(service._parts.publisher, "publish", restarting)
    if start > 1.0:
        assert service.publish(1, iter(())).restarted == ("engine 0",)
    else:
        with pytest.raises(DeadlineExceeded, match="publishing version 1"):
            service.publish(1, iter(()))
