"""An engine on another node: a real vLLM is started, supervised and ended through that node's agent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from tau2_lightning.launch.ranks import KEY_VARIABLE
from tau2_lightning.launch.remote_commands import CommandServer
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.place import EnginePlace
from tau2_lightning.rollout.engine.pool import EnginePool
from tests.e2e.reference_models import ReferenceModels, engine_settings

pytestmark = pytest.mark.e2e


def serving(name: str) -> list[psutil.Process]:
    """Living processes whose command line names the served model."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if name in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


async def test_it_serves_and_is_ended_through_the_agent(
    reference: ReferenceModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(KEY_VARIABLE, "the job's key")
    agent = CommandServer("127.0.0.1", "the job's key")
    place = EnginePlace("127.0.0.1", (), agent.address)
    settings = engine_settings(reference, tmp_path / "engine.log", places=(place,), served_name="remote-engine-test")
    try:
        async with EnginePool(settings) as pool:
            answer = await pool.generate([5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True), deadline=60)
            assert len(answer.token_ids) == 4
            started = serving("remote-engine-test")
            mine = psutil.Process().children()  # the client, and the watchdog that the agent started
            assert any(one in mine or one.parent() in mine for one in started)
            assert "vLLM" in (tmp_path / "engine.log").read_text(), "the log of the engine did not come back"
        ends = time.monotonic() + 20
        while left := serving("remote-engine-test"):
            assert time.monotonic() < ends, left
            await asyncio.sleep(0.1)
    finally:
        agent.close()
