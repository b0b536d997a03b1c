"""A pool whose engines are real processes of a fake server, to be killed and stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.rollout.engine import server as engine_server
from tau2_lightning.rollout.engine.member import EngineMember
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings

SERVER = "tests.rollout.engine.fake_server"


@asynccontextmanager
async def processes(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, seconds: float = 0.0, **settings: Any
) -> AsyncIterator[EnginePool]:
    """A pool that serves; ``seconds`` is how long a completion takes."""

    def command(_: EngineSettings, port: int) -> list[str]:
        return [sys.executable, "-m", SERVER, str(port), str(seconds)]

    monkeypatch.setattr(engine_server, "server_command", command)
    monkeypatch.setattr(engine_server, "server_environment", lambda *_: dict(os.environ, PYTHONPATH=os.getcwd()))
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.WATCH_SECONDS", 0.02)
    given = EngineSettings(model_path="x", log_path=folder / "engine.log", start_timeout_s=120.0, **settings)
    async with EnginePool(given) as pool:
        yield pool


def send(member: EngineMember, number: signal.Signals) -> None:
    """Send a signal to the server process itself, below its watchdog."""
    import psutil

    assert member.server is not None and member.server.pid is not None
    for child in psutil.Process(member.server.pid).children(recursive=True):
        child.send_signal(number)
