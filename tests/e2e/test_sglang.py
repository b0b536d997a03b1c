"""The real SGLang beyond the contract of all engines: its transports, adapters, numbers, deaths and keys.

`make test-sglang` runs this together with the engine's contract (test_engine.py) and the main job.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tau2_lightning.rollout.engine.generation import EngineRejected, SamplingParams
from tau2_lightning.rollout.engine.meter import EngineMeter
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.statistics import read_metrics
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.e2e.adapters import adapters_replace_each_other
from tests.e2e.reference_models import ENGINE, ReferenceModels, engine_settings
from tests.e2e.test_engine import DEADLINE, TOLERANCE, differences, random_row
from tests.launch.processes import members

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(ENGINE != "sglang", reason="SGLANG_PYTHON names no interpreter (make test-sglang)"),
]
LONG = SamplingParams(max_tokens=3500, ignore_eos=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fragile_pool(
    reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EnginePool]:
    """A server of this module's own, with adapters enabled."""
    log_path = tmp_path_factory.mktemp("fragile") / "engine.log"
    async with EnginePool(engine_settings(reference, log_path, lora_rank=8)) as pool:
        yield pool


@pytest.mark.parametrize("backend", ["shm", "http", "gloo"])
async def test_every_transport_brings_the_same_weights(fragile_pool, reference, backend):
    publisher = WeightPublisher(fragile_pool, backend=backend)
    row = random_row(300, seed=5)
    for version, name in ((1, "B"), (2, "A"), (3, "B")):
        buckets = [[pair] for pair in reference.weights(name)]
        await publisher.publish(version, buckets, mode="keep")
        expected = [reference.logprobs(name, row)]
        report = await check_parity(
            fragile_pool, [row], expected, tolerance=Tolerance.largest(TOLERANCE), version=version
        )
        assert report.tokens == 299
    await publisher.close()


@pytest.mark.parametrize("backend", ["http", "gloo"])
async def test_requests_go_on_with_the_new_weights_from_the_right_token_on(fragile_pool, reference, backend):
    publisher = WeightPublisher(fragile_pool, backend=backend)
    await publisher.publish(10, reference.buckets("A"), mode="keep")
    prompts = [random_row(100, seed=seed) for seed in range(3)]
    sampling = SamplingParams(max_tokens=900, ignore_eos=True)
    work = [asyncio.create_task(fragile_pool.generate(prompt, sampling, deadline=DEADLINE)) for prompt in prompts]
    await asyncio.sleep(1.5)
    await publisher.publish(11, reference.buckets("B"), mode="keep")
    for prompt, generation in zip(prompts, await asyncio.gather(*work), strict=True):
        assert len(generation.token_ids) == 900 and set(generation.versions) == {10, 11}
        switch = generation.versions.index(11)
        old, new = [await differences(reference, name, prompt, generation) for name in "AB"]
        assert max(old[:switch]) < TOLERANCE and max(new[switch:]) < TOLERANCE
        assert max(new[:switch]) > 0.1 and max(old[switch:]) > 0.1  # negative control: the models do differ
    await publisher.close()


async def test_what_would_end_the_server_does_not_reach_it(fragile_pool, reference):
    server = fragile_pool.members[0].server
    assert server is not None
    pid = server.pid
    with pytest.raises(EngineRejected, match="is not among the"):
        await fragile_pool.generate([5, 999_999], SamplingParams(max_tokens=1), deadline=DEADLINE)
    publisher = WeightPublisher(fragile_pool)
    name, tensor = reference.weights("A")[-1]
    with pytest.raises(ValueError, match="has the shape"):
        await publisher.publish(20, [[(name, tensor[:3])]])
    await WeightPublisher(fragile_pool).publish(21, reference.buckets("A"))
    assert server.pid == pid and await fragile_pool.health() == {"engine 0": True}


async def test_adapters_are_a_smaller_payload(fragile_pool, reference, tmp_path: Path):
    await adapters_replace_each_other(fragile_pool, reference, tmp_path, first=30)


async def running(pool: EnginePool) -> float:
    reading = read_metrics(await pool.members[0].client.metrics(5.0))
    assert reading is not None
    return reading.gauges["running"]


async def test_cancelled_requests_leave_the_server(fragile_pool):
    rows = [random_row(50, seed=seed) for seed in range(16)]
    work = [asyncio.create_task(fragile_pool.generate(row, LONG, deadline=DEADLINE)) for row in rows]
    await asyncio.sleep(2.0)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    client = fragile_pool.members[0].client
    began = time.monotonic()
    short = SamplingParams(max_tokens=2, ignore_eos=True)
    while True:  # numbers are written when a batch ends, so there must be one
        await client.generate(random_row(20), short)
        if await running(fragile_pool) <= 1:
            break
        assert time.monotonic() - began < 30
        await asyncio.sleep(1.0)


async def test_a_deadline_keeps_the_tokens_sampled_so_far(fragile_pool, reference):
    version = fragile_pool.members[0].version
    await WeightPublisher(fragile_pool).publish(version + 1, reference.buckets("A"))
    prompt, began = random_row(80, seed=3), time.monotonic()
    generation = await fragile_pool.generate(prompt, LONG, deadline=2.0)
    assert time.monotonic() - began < 10
    assert generation.cut and generation.finish_reason == "length" and 5 < len(generation.token_ids) < 3500
    assert max(await differences(reference, "A", prompt, generation)) < TOLERANCE


async def test_the_servers_own_numbers_are_read(fragile_pool):
    meter = EngineMeter(fragile_pool, every=0.2)
    reading = asyncio.create_task(meter.run())
    row = random_row(400, seed=77)

    async def talk(turns: int) -> None:  # counters grow when a request ends, and are read while another runs
        for _ in range(turns):
            await fragile_pool.generate(row, SamplingParams(max_tokens=60, ignore_eos=True), deadline=DEADLINE)

    await asyncio.gather(talk(6), talk(5))
    reading.cancel()
    numbers = meter.take()
    assert numbers["engine/running/max"] >= 1 and 0 < numbers["engine/prefix_hit_rate"] <= 1
    assert 0 <= numbers["engine/kv_usage/max"] < 1


async def test_a_killed_server_is_replaced_and_serves_the_current_weights(fragile_pool, reference):
    publisher, member = WeightPublisher(fragile_pool), fragile_pool.members[0]
    version = member.version + 1
    await publisher.publish(version, reference.buckets("B"))
    server = member.server
    assert server is not None and server.pid is not None
    old, row = server.pid, random_row(200, seed=11)
    victims = [process for process in members(old) if "watchdog" not in " ".join(process.cmdline())]
    assert len(victims) >= 3  # server, scheduler, detokenizer
    asked = asyncio.create_task(fragile_pool.generate(row, SamplingParams(1500, ignore_eos=True), deadline=300))
    await asyncio.sleep(1.0)
    os.kill(min(victims, key=psutil.Process.create_time).pid, signal.SIGKILL)
    short = SamplingParams(max_tokens=20, ignore_eos=True)
    generation = await fragile_pool.generate(row, short, deadline=300)
    assert member.restarts == 1 and not members(old)
    assert set(generation.versions) == {version}
    assert max(await differences(reference, "B", row, generation)) < TOLERANCE
    assert len((await asked).token_ids) > 0  # played again by the new server
    await publisher.close()


async def test_a_frozen_scheduler_is_found_and_a_busy_one_is_left_alone(fragile_pool, reference, monkeypatch):
    """SIGSTOP of the scheduler: the API server still says that it is healthy."""
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 4.0)
    member = fragile_pool.members[0]
    publisher, client, restarts = WeightPublisher(fragile_pool), member.client, member.restarts
    await publisher.publish(50, reference.buckets("A"))
    prompt, sampling = random_row(100, seed=2), SamplingParams(max_tokens=1500, ignore_eos=True)
    before = await client.cpu_seconds(30)
    await asyncio.gather(*(fragile_pool.generate(prompt, sampling, deadline=300) for _ in range(8)))
    assert member.restarts == restarts  # no answer for long, and steps that end
    used = await client.cpu_seconds(30)
    assert before is not None and used is not None and used > before + 1
    running = asyncio.create_task(fragile_pool.generate(prompt, sampling, deadline=300))
    await asyncio.sleep(1.0)
    assert member.server is not None and member.server.pid is not None
    (scheduler,) = [one for one in members(member.server.pid) if "scheduler" in " ".join(one.cmdline())]
    scheduler.suspend()
    await asyncio.sleep(0.5)
    assert await client.healthy() and not await client.responds(1.0)
    generation = await running
    assert set(generation.versions) == {50} and member.restarts == restarts + 1
    await publisher.close()


@pytest.mark.parametrize("path", ["/pause_generation", "/generate", "/update_weights_from_disk", "/metrics"])
async def test_strangers_get_nothing_but_health(fragile_pool, path):
    member = fragile_pool.members[0]
    log = member.server.log_path.read_text(errors="replace") if member.server else ""
    assert fragile_pool.settings.api_key not in log
    async with aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with session.post(member.client.url + path, json={}, headers=headers) as response:
                assert response.status == 401


async def test_stop_leaves_no_process(reference, tmp_path):
    """Runs last: starts one more server and ends it while it still starts."""
    pool = EnginePool(engine_settings(reference, tmp_path / "engine.log"))
    await pool.start()
    server = pool.members[0].server
    assert server is not None and server.pid is not None
    await asyncio.sleep(8.0)
    await pool.stop()
    assert not members(server.pid)
