"""C11: while an engine hangs and is restarted, the screen says what is waited for, since when, and why."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from tau2_lightning.callbacks.progress import RunProgress
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.telemetry.phases import PhaseClock
from tests.cases.engines import processes, send
from tests.rollout.engine.test_pool import SAMPLING


class Screen:
    """What the progress callback prints about a rollout that ``pool`` serves."""

    def __init__(self, pool: EnginePool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tau2_lightning.callbacks.progress.HEARTBEAT_SECONDS", 0.05)
        service = object.__new__(RolloutService)
        parts: Any = SimpleNamespace(pool=pool, collector=SimpleNamespace(progress=Progress("rollout", total=96)))
        service._running = parts
        self.out, self.clock = io.StringIO(), PhaseClock()
        data = SimpleNamespace(rollouts=SimpleNamespace(service=service), clock=self.clock)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        self.trainer: Any = SimpleNamespace(is_global_zero=True, datamodule=data, strategy=strategy)
        self.callback = RunProgress("plain", Console(file=self.out, width=500))

    def __enter__(self) -> Screen:
        self.callback.setup(self.trainer, cast("Any", None), "fit")
        return self

    def __exit__(self, *_: object) -> None:
        self.callback.teardown(self.trainer, cast("Any", None), "fit")

    async def shows(self, pattern: str) -> str:
        ends = time.monotonic() + 60
        while not (found := re.findall(f".*{pattern}.*", self.out.getvalue())):
            assert time.monotonic() < ends, self.out.getvalue()
            await asyncio.sleep(0.02)
        return str(found[-1])


async def test_c11_a_hung_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 1.0)
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.ASK_SECONDS", 0.3)
    async with processes(monkeypatch, tmp_path, seconds=0.5, max_restarts=5) as pool:
        screen = Screen(pool, monkeypatch)
        with screen, screen.clock.phase("rollout"):
            quiet = await screen.shows("training: rollout, for 0 s: 0/96 episodes")
            assert "engine" not in quiet, "nothing is said of an engine that serves"
            asked = asyncio.create_task(pool.generate([1], SAMPLING, deadline=90.0))
            await asyncio.sleep(0.2)
            send(pool.members[0], signal.SIGSTOP)
            line = await screen.shows("engine 0 has ended no step; it is examined whether it still computes, for")
            assert re.search(r"0/96 episodes .* for \d+ s", line)
            line = await screen.shows("engine 0 is restarted")
            assert re.search(
                r"engine 0 is restarted \(1 of 5 in 60 min, rollout\.max_restarts\), for \d+ s \(no step ended", line
            )
            assert list((await asyncio.wait_for(asked, 90)).token_ids) == [1, 2, 3], "no request is lost"
            await asyncio.sleep(0.2)
            assert "engine" not in screen.out.getvalue().splitlines()[-1]


async def test_c11_a_crashed_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with processes(monkeypatch, tmp_path) as pool:
        screen = Screen(pool, monkeypatch)
        with screen, screen.clock.phase("rollout"):
            send(pool.members[0], signal.SIGKILL)
            line = await screen.shows("engine 0 is restarted")
            assert "(its process ended)" in line
