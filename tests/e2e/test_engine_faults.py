"""What happens to a real engine that is killed, frozen or orphaned, and to one that serves LoRA adapters."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import pytest_asyncio

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.e2e.adapters import adapters_replace_each_other
from tests.e2e.front import Front
from tests.e2e.reference_models import ReferenceModels, engine_settings
from tests.e2e.test_engine import TOLERANCE, differences, random_row

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

RESTART = 300.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fragile_pool(
    reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EnginePool]:
    """An engine of this module's own, with adapters enabled."""
    log_path = tmp_path_factory.mktemp("fragile") / "engine.log"
    async with EnginePool(engine_settings(reference, log_path, lora_rank=8)) as pool:
        yield pool


def living_in(group: int) -> dict[int, str]:
    """Process ids and command lines of the living members of a process group."""
    found = {}
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = " ".join(process.cmdline())
        except (ProcessLookupError, psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended (or became a zombie, which has no command line) while we looked
    return found


def members_of(pool: EnginePool) -> dict[str, psutil.Process]:
    """The engine's processes by role."""
    found = {}
    server = pool.members[0].server
    assert server is not None and server.pid is not None
    for pid, name in living_in(server.pid).items():
        found["core" if "EngineCore" in name else "watchdog" if "watchdog" in name else "api"] = psutil.Process(pid)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that init has not yet collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_adapters_are_a_smaller_payload(fragile_pool, reference, tmp_path: Path):
    await adapters_replace_each_other(fragile_pool, reference, tmp_path, first=0)


ASK: Any = {"model": "policy", "messages": [{"role": "user", "content": "x"}], "extra_body": {"ignore_eos": True}}


async def streamed(front: Front) -> str:
    """A stream until it breaks; returns the error that the client gets."""
    session = front.store.start()
    stream = await front.client(session.api_key).chat.completions.create(**ASK, max_tokens=2500, stream=True)
    with pytest.raises(openai.APIError) as broken:
        async for _ in stream:
            pass
    assert session.turns == 0  # an unfinished turn is not recorded
    return str(broken.value)


async def test_a_killed_engine_comes_back_with_the_current_weights(fragile_pool, reference):
    publisher = WeightPublisher(fragile_pool)
    await publisher.publish(7, reference.buckets("B"))
    prompt, sampling = random_row(100, seed=1), SamplingParams(max_tokens=2500, ignore_eos=True)
    async with Front(fragile_pool, reference, max_new_tokens=3000, request_timeout=RESTART) as front:
        running = asyncio.create_task(fragile_pool.generate(prompt, sampling, session="s", deadline=RESTART))
        session = front.store.start()
        client = front.client(session.api_key).with_options(timeout=RESTART)
        asking = asyncio.create_task(client.chat.completions.create(**ASK, max_tokens=2500))
        streaming = asyncio.create_task(streamed(front))
        await asyncio.sleep(1.0)
        before = members_of(fragile_pool)
        before["core"].kill()
        assert "engine" in await streaming  # a stream cannot be retried after text was sent, so it fails with a cause
        generation, answer = await running, await asking  # retried on the restarted engine, within their deadline
        (row,) = front.store.export(session.session_id)
    assert len(generation.token_ids) == 2500 and set(generation.versions) == {7}
    assert max(await differences(reference, "B", prompt, generation)) < TOLERANCE
    assert answer.usage.completion_tokens == 2500 and set(row.versions[row.loss_mask].tolist()) == {7}
    assert fragile_pool.members[0].restarts == 1 and fragile_pool.faults["engine:crash"] == 1
    assert not any(alive(process) for process in before.values())


async def test_a_frozen_engine_is_named_by_the_deadline(fragile_pool, reference):
    core = members_of(fragile_pool)["core"]
    async with Front(fragile_pool, reference, request_timeout=2.0) as front:
        session = front.store.start()
        client = front.client(session.api_key)
        core.suspend()
        try:
            with pytest.raises(DeadlineExceeded, match="generating on engine 0"):
                await fragile_pool.generate(random_row(10), SamplingParams(max_tokens=2), deadline=2.0)
            for stream in (False, True):
                with pytest.raises(openai.InternalServerError, match="on engine 0") as late:
                    await client.chat.completions.create(**ASK, max_tokens=2, stream=stream)
                assert (late.value.status_code, late.value.code) == (504, "engine_timeout")
            client_of_engine = fragile_pool.members[0].client
            assert await client_of_engine.healthy() and not await client_of_engine.responds(1.0)
        finally:
            core.resume()
        assert await client_of_engine.responds(30.0)
        front.store.abort(session.session_id)
    assert (await fragile_pool.generate(random_row(10), SamplingParams(max_tokens=2), deadline=60)).token_ids


async def test_a_frozen_core_is_found_and_started_again_and_a_busy_one_is_not(fragile_pool, reference, monkeypatch):
    """SIGSTOP of the engine core: the API server still says that it is healthy."""
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 4.0)
    publisher = WeightPublisher(fragile_pool)
    await publisher.publish(9, reference.buckets("A"))
    client, restarts = fragile_pool.members[0].client, fragile_pool.members[0].restarts
    prompt, sampling = random_row(100, seed=2), SamplingParams(max_tokens=3000, ignore_eos=True)
    before = await client.cpu_seconds(30)
    await asyncio.gather(*(fragile_pool.generate(prompt, sampling, deadline=RESTART) for _ in range(8)))
    assert fragile_pool.members[0].restarts == restarts  # no answer for long, and steps that end
    used = await client.cpu_seconds(30)
    assert before is not None and used is not None and used > before + 1
    running = asyncio.create_task(fragile_pool.generate(prompt, sampling, deadline=RESTART))
    await asyncio.sleep(1.0)
    members_of(fragile_pool)["core"].suspend()
    frozen = await client.cpu_seconds(30)
    await asyncio.sleep(0.5)
    stopped = await client.cpu_seconds(30)
    assert stopped is not None and frozen is not None and stopped - frozen < 0.1 and await client.healthy()
    generation = await running
    assert set(generation.versions) == {9} and fragile_pool.members[0].restarts == restarts + 1


async def test_nothing_is_left_after_stop(fragile_pool):
    processes = members_of(fragile_pool)
    assert set(processes) == {"core", "api", "watchdog"}
    await fragile_pool.stop()
    assert not any(alive(process) for process in processes.values())


PARENT = """
import asyncio, sys
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
async def main():
    pool = EnginePool(EngineSettings(model_path=sys.argv[1], max_model_len=512, kv_cache_gib=0.1))
    await pool.start()
    print(pool.members[0].server.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_kill_9_of_the_trainer_leaves_no_orphan(reference):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(reference.folders["A"])], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    group = int(parent.stdout.readline())

    deadline = time.monotonic() + RESTART
    while not any("EngineCore" in name for name in living_in(group).values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(living_in(group)) >= 3
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while living_in(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living_in(group)
