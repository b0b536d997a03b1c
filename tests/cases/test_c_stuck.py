"""A phase that hangs ends the run at its deadline, with everything saved; an episode that hangs is named."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tau2_lightning.launch.manifest import damage
from tau2_lightning.rollout.background import BackgroundLoop
from tau2_lightning.rollout.service import RolloutService
from tests.cases.foreign import ask, stage
from tests.cases.test_c07_signals import EPOCHS
from tests.programs import Forked
from tests.rollout.proxy.rig import until

# Where the job stands still, the phase that reaches its deadline, the key of that, and what is saved.
PLACES = [
    ("step", "train", "trainer.train_timeout=12", "step2.ckpt"),
]


@pytest.mark.parametrize(("place", "phase", "word", "saved"), PLACES)
def test_a_run_that_hangs_ends_with_everything_saved(
    place: str, phase: str, word: str, saved: str, policy: Path, tmp_path: Path
) -> None:
    command = ["-m", "tests.cases.stopping_job", str(policy), str(tmp_path), place, *EPOCHS, word]
    with Forked(command, tmp_path / "screen.txt") as process:
        code, told = process.wait(), process.printed
    assert code == 1, told
    assert f"stuck: phase {phase!r} for" in told and "stand_still" in told
    assert f"DeadlineExceeded: {phase}: timeout" in told and "ckpt_path=last" in told
    checkpoints = list((tmp_path / "e" / "t" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [saved] and damage(checkpoints[0]) is None


def service_of(runner: Any, background: BackgroundLoop, progress: Any) -> RolloutService:
    """A service of which only what it says about episodes is asked."""
    service = object.__new__(RolloutService)
    parts: Any = SimpleNamespace(
        runner=runner, pool=SimpleNamespace(waits=lambda: ""), collector=SimpleNamespace(progress=progress)
    )
    service._running, service._background = parts, background
    return service


def blocked(background: BackgroundLoop) -> Future[None]:
    """The loop waits for a second and a half without ``await``."""

    async def block() -> None:
        time.sleep(1.5)  # noqa: ASYNC251

    return asyncio.run_coroutine_threadsafe(block(), background.loop)


def test_an_episode_that_blocks_the_loop_of_all_episodes_is_named() -> None:
    """Other than one that awaits for ever, no deadline inside the loop can end it."""
    background = BackgroundLoop()
    background._beat -= 100.0  # as after a hundred seconds in which the loop did not run

    blocking = blocked(background)
    try:
        time.sleep(0.1)
        background._beat -= 100.0
        assert background.blocked_for > 90
        service = service_of(SimpleNamespace(playing=set()), background, SimpleNamespace(describe=lambda: "rollout"))
        assert re.match(r"the loop of the episodes is blocked for \d+ s: a tool", service.whereabouts()[0])
        blocking.result(20)
        time.sleep(0.2)
        assert background.blocked_for < 1.0
    finally:
        background.close()


async def test_the_oldest_episodes_are_named_with_what_they_wait_for() -> None:
    async def play(client: Any, data: Any) -> float:
        await ask(client)
        if data["task_id"] == "task-1":
            await looked.wait()
        return 1.0

    looked = asyncio.Event()

    background = BackgroundLoop()
    try:
        async with stage(play) as at:
            collecting = asyncio.create_task(at.collect(n_groups=3, n_samples=2))
            await until(lambda: at.collector.progress.finished == 4, 60.0)
            lines = service_of(at.runner, background, at.collector.progress).whereabouts()
            assert sum("task task-1, sample" in line and "in workflow for" in line for line in lines) == 2, lines
            assert not any("task-0" in line for line in lines[1:])
            looked.set()
            await collecting
            assert not at.runner.playing
    finally:
        background.close()


def test_the_tasks_of_a_checkpoint_are_known_also_while_the_loop_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tau2_lightning.rollout.service.STOP_SECONDS", 0.3)
    background = BackgroundLoop()

    blocking = blocked(background)
    try:
        service = service_of(None, background, None)
        service._ahead = SimpleNamespace(unfinished=["task 7"])  # type: ignore[assignment]
        assert service.while_collecting(str) == "['task 7']"
        blocking.result(20)
    finally:
        background.close()
