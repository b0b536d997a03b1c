"""C8: engines may be restarted so many times in a stretch of time; then the run ends, with everything saved."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.launch.budget import Budget
from tau2_lightning.launch.manifest import damage
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.server import EngineServer
from tau2_lightning.rollout.engines import engine_settings
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tests.cases.engines import processes, send
from tests.cases.runs import Runs
from tests.fake_service import FakeService
from tests.rollout.engine.test_pool import SAMPLING


async def crash(pool: EnginePool) -> None:
    """Kill the engine; return when it serves again, or raise why it never will."""
    (member,) = pool.members
    life = member.restarts
    send(member, signal.SIGKILL)
    await pool.wait_until(lambda: member.restarts > life and member.ready, 120.0, "restarting")
    assert list((await pool.generate([1], SAMPLING, deadline=60.0)).token_ids) == [1, 2, 3]


async def test_c08_crashes_that_are_far_apart_never_end_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with processes(monkeypatch, tmp_path, max_restarts=1, restart_window_s=0.2) as pool:
        for _ in range(4):
            await crash(pool)
            await asyncio.sleep(0.2)
        assert pool.members[0].restarts == 4 and pool.members[0].failure is None


async def test_c08_one_crash_too_many_within_the_window_is_final_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with processes(monkeypatch, tmp_path, max_restarts=1, restart_window_s=3600.0) as pool:
        await crash(pool)
        with pytest.raises(InfrastructureFault, match=r"died 2 times in 3600 s.*rollout\.max_restarts=1") as error:
            await crash(pool)
        assert error.value.name == "engine:crash" and "rollout.restart_window" in str(error.value)
        with pytest.raises(InfrastructureFault, match="died 2 times"):  # and no request waits for it
            await asyncio.wait_for(pool.generate([1], SAMPLING, deadline=60.0), 10)


async def test_c08_one_that_dies_as_it_restarts_has_died_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory that is taken for a moment ends the start of an engine, and must not end a run of a week."""
    async with processes(monkeypatch, tmp_path, max_restarts=3, restart_window_s=3600.0) as pool:
        (member,) = pool.members
        starts, start = list[int](), EngineServer.start

        def fails_twice(server: EngineServer) -> None:
            start(server)
            starts.append(member.restarts)
            if len(starts) <= 2:
                server.kill()

        monkeypatch.setattr(EngineServer, "start", fails_twice)
        await crash(pool)
        assert starts == [1, 2, 3] and member.restarts == 3 and member.failure is None
        starts.clear()
        with pytest.raises(InfrastructureFault, match=r"died 4 times in 3600 s"):
            await crash(pool)


async def test_c08_one_that_dies_at_the_start_of_the_run_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It has never served, so its settings may be wrong: nobody waits for five more such starts."""
    monkeypatch.setattr("tests.cases.engines.SERVER", "tests.no_such_module")
    with pytest.raises(InfrastructureFault, match="engine 0 died while starting"):
        async with processes(monkeypatch, tmp_path, max_restarts=3):
            pytest.fail("it serves")


def test_c08_both_numbers_are_keys(tmp_path: Path) -> None:
    words = ["domain=mock", "rollout.max_restarts=9", "rollout.restart_window=60", "trainer.accelerator=cpu"]
    found = engine_settings(load_config(words, check=False), tmp_path, tmp_path / "engine.log")
    assert (found.max_restarts, found.restart_window_s) == (9, 60.0)


def test_c08_a_budget_counts_what_is_recent() -> None:
    now = [0.0]
    budget = Budget(2, 10.0, lambda: now[0])
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    now[0] = 10.5
    assert budget.spent == 0 and budget.spend() and str(budget) == "1 of 2 in 0.166667 min"
    now[0] = 15.0
    assert budget.spend() and not budget.spend()


class Dies(FakeService):
    """A service whose engine is given up in the third batch."""

    def collect(self, tasks: Any, plan: Any) -> Any:
        if len(self.published) == 2:
            raise InfrastructureFault("engine", "crash", "engine 0 died 6 times in 3600 s")
        return super().collect(tasks, plan)


def test_c08_the_steps_before_are_saved_and_the_run_goes_on_from_them(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(policy, tmp_path, monkeypatch)
    longer = ("train_dataset.batches_per_epoch=4", "trainer.max_epochs=1")
    monkeypatch.setattr("tests.jobs.FakeService", Dies)
    assert exit_code(lambda: bool(runs(*longer))) == 1
    told = capsys.readouterr().err
    assert "engine 0 died 6 times in 3600 s" in told and "ckpt_path=last" in told
    assert runs.kept() == ["step2.ckpt"] and damage(runs.checkpoints / "step2.ckpt") is None
    monkeypatch.setattr("tests.jobs.FakeService", FakeService)
    assert runs("ckpt_path=last", *longer).published == [2, 3, 4]
