"""A server whose computing process ended is down, although it still answers; a weight sync does not wait for it."""

from __future__ import annotations

import asyncio
import os
import sys

import psutil
import pytest

from tau2_lightning.rollout.engine import server as engine_server
from tau2_lightning.rollout.engine.cores import cores_below, ended
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.server import EngineServer
from tau2_lightning.rollout.engine.settings import EngineSettings

# Answers, with a child that has the title of vLLM's core: whatever happens to it, the server goes on.
PROGRAM = """
import asyncio, ctypes, os, sys, time
if os.fork() == 0:
    ctypes.CDLL(None).prctl(15, b"VLLM::EngineCore", 0, 0, 0)
    time.sleep(600)
from tests.rollout.engine.fake_server import main
asyncio.run(main(int(sys.argv[1])))
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path) -> EngineSettings:
    monkeypatch.setattr(
        engine_server, "server_command", lambda settings, port: [sys.executable, "-c", PROGRAM, str(port)]
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return EngineSettings(model_path="x", log_path=tmp_path / "engine.log", start_timeout_s=60)


async def test_a_server_without_its_core_is_down_and_says_so(settings: EngineSettings) -> None:
    server = EngineServer(settings)
    server.start()
    await server.wait_ready()
    (core,) = cores_below(server.pid or 0)
    assert server.alive and server.end == "its process ended", "of a server that is alive this says nothing"
    core.kill()
    core_gone = asyncio.create_task(_until(lambda: not server.alive))
    await asyncio.wait_for(core_gone, 10)
    assert server.end == f"its process {core.pid}, which computes, ended"
    assert psutil.pid_exists(server.pid or 0), "the server itself goes on"
    await server.stop()


async def test_it_is_started_again(settings: EngineSettings) -> None:
    async with EnginePool(settings) as pool:
        member = pool.members[0]
        assert member.server is not None
        (core,) = cores_below(member.server.pid or 0)
        core.kill()
        await asyncio.wait_for(_until(lambda: member.restarts == 1 and member.ready), 60)
        (other,) = cores_below(member.server.pid or 0)
        assert other.pid != core.pid and ended([other]) is None


async def test_other_children_may_end(settings: EngineSettings) -> None:
    assert cores_below(os.getpid()) == () and ended(()) is None
    assert cores_below(2**22 + 1) == (), "a process that is no more"


async def _until(holds) -> None:
    while not holds():  # noqa: ASYNC110  # another process
        await asyncio.sleep(0.05)
