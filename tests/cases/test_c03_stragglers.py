"""C3: an episode that hangs is excluded by its cause, and the batch goes on without it; deadlines follow a rule."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tau2_lightning.environment.patience import uncharged
from tau2_lightning.errors import TooManyFaults
from tau2_lightning.rollout import deadlines
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.collect.overlapped import AsyncCollector
from tau2_lightning.rollout.collect.played import check_collection
from tau2_lightning.rollout.deadlines import Limits, pause_before_retry
from tau2_lightning.rollout.episode import leash
from tau2_lightning.run.compose import load_config
from tests.cases.foreign import ask, stage, tasks
from tests.rollout.proxy.rig import until


class Hanging:
    """An agent of which the episodes of sample ``number`` never end; ``stubborn``: not even when they are cancelled.

    They are let go at the end of its ``with`` block, since pytest waits for every task of its loop. ``living`` is how
    many of them hang.
    """

    def __init__(self, number: int, *, stubborn: bool = False) -> None:
        self.number, self.stubborn, self.living, self._over = number, stubborn, 0, False

    async def __call__(self, client: Any, data: Any) -> float:
        with uncharged():  # only the hang counts, also on a busy machine
            await ask(client)
        if not data["task_id"].endswith(str(self.number)):
            return 1.0
        self.living += 1
        try:
            while not self._over:
                try:
                    await asyncio.sleep(0.1 if self.stubborn else 600.0)
                except asyncio.CancelledError:
                    if not self.stubborn:
                        raise
            return 1.0
        finally:
            self.living -= 1

    def __enter__(self) -> Hanging:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leash, "UNWIND_SECONDS", 0.2)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_c03_a_hanging_workflow_is_retried_then_excluded_and_the_batch_goes_on(stubborn: bool) -> None:
    with Hanging(1, stubborn=stubborn) as agent:
        async with stage(agent, timeout=600.0, retries=1) as at:
            await at.collector.evaluate([next(tasks())], 1, deadline=60.0)  # what happens once may take longer
            at.runner.timeout = 2.0
            collection = await at.collect(n_groups=3, n_samples=2)
            assert dict(collection.excluded) == {"episode:timeout": 2}
            assert at.runner.faults == {"episode:timeout": 4}
            assert [group.task_id for group in collection.groups] == ["task-0", "task-2"] and collection.lost == 1
            assert agent.living == (4 if stubborn else 0), "nobody may wait for them"
            check_collection(collection)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_c03_at_the_deadline_of_a_batch_stragglers_are_excluded_and_the_rest_is_trained_on(
    stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.rollout.collect.concurrently.END_SECONDS", 0.5)
    with Hanging(1, stubborn=stubborn) as agent:
        async with stage(agent, timeout=600.0, retries=2) as at:
            await at.collector.evaluate([next(tasks())], 1, deadline=60.0)
            plan = CollectPlan(3, 2, filter_groups=False, max_refill=3)
            collection = await asyncio.wait_for(at.collector.collect(tasks(), plan, deadline=5.0), 30)
            assert dict(collection.excluded) == {"batch:timeout": 2}
            assert {"task-0", "task-2"} <= {group.task_id for group in collection.groups}
            late = [(one.task_id, one.sample, one.cause, one.final) for one in at.collector.late]
            assert late == [("task-1", sample, "batch:timeout", True) for sample in (0, 1)], "for the record"
            assert "2 excluded (batch:timeout 2)" in at.collector.progress.describe()
            assert agent.living == (2 if stubborn else 0), "nobody may wait for them"
            await _forgotten(at.rig.store, stubborn)


async def _forgotten(store: Any, stubborn: bool) -> None:
    """Nobody may be left in the store. A stubborn one is let go of a little later."""
    await until(lambda: not (stubborn and len(store)), 10.0)


async def test_c03_more_stragglers_than_allowed_stop_the_run() -> None:
    async def play(client: Any, data: Any) -> float:
        await asyncio.sleep(600)
        return 1.0

    async with stage(play, timeout=600.0, max_fault_fraction=0.5) as at:
        with pytest.raises(TooManyFaults, match="batch:timeout 3"):
            await at.collector.collect(tasks(), CollectPlan(2, 2), deadline=0.5)


async def test_c03_a_collection_beside_training_goes_on_without_a_straggler() -> None:
    async with stage(Hanging(1), timeout=600.0) as at:
        await at.collector.evaluate([next(tasks())], 1, deadline=60.0)
        plan = CollectPlan(2, 2, filter_groups=False)
        ahead = AsyncCollector(at.collector, tasks(), plan, max_head_offpolicyness=1, group_seconds=5.0)
        ahead.start()
        try:
            first = await ahead.take(deadline=60)  # of groups that are finished: it waits for none
            ahead.advance(1)
            at.rig.engine.version = 1  # as a weight sync does
            second = await ahead.take(deadline=60)
        finally:
            await ahead.close()
        played = [group.task_id for group in (*first.groups, *second.groups)]
        assert len(played) >= 3 and "task-1" not in played
        assert first.excluded + second.excluded == {"batch:timeout": 2} and first.lost + second.lost == 1


ALL_DEFAULTS: Sequence[str] = ()


@pytest.mark.parametrize(
    "words",
    [
        ALL_DEFAULTS,
        ("rollout.episode_timeout=600",),  # three attempts of ten minutes were longer than the half hour of a batch
        ("rollout.episode_timeout=600", "rollout.retries=0"),
        ("rollout.retries=12",),
        ("gconfig.max_tokens=40000", "gconfig.max_new_tokens=16000", "rollout.max_concurrent_rollouts=3"),
    ],
)
def test_c03_a_batch_has_the_time_of_every_attempt_of_its_episodes(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "usable_cores", lambda: 2)
    found = Limits.of(load_config(["domain=mock", "trainer.accelerator=cpu", *words], check=False))
    retries = found.retries
    slowest = (retries + 1) * (found.episode + deadlines.UNWIND_SECONDS)
    slowest += sum(pause_before_retry(attempt) for attempt in range(retries))
    for episodes in (1, found.concurrent, 3 * found.concurrent + 1):
        rounds = -(-episodes // found.concurrent)
        assert found.batch(episodes) >= rounds * slowest
    assert found.request <= found.episode
