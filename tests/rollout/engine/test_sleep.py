"""Engines that share the trainer's GPUs sleep while it computes, and wake part by part when weights come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from aiohttp import web

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.command import server_command
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.engine.sleep import put_to_sleep
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.rollout.engine.fake_vllm import FakeVLLM

BUCKETS = [[("layer.0.weight", torch.ones(10, 10))]]


@pytest_asyncio.fixture
async def sleepers(servers: list[FakeVLLM]) -> AsyncIterator[EnginePool]:
    """A started pool of ``servers`` that sleep at level 2; every call with its parameters is in ``calls``."""
    urls = tuple(server.url for server in servers)
    async with EnginePool(EngineSettings(urls=urls, sleep_level=2)) as pool:
        for server in servers:
            server.calls.clear()
            for path in ("/sleep", "/wake_up"):
                server.behave[path] = note(server)
        yield pool


def note(server: FakeVLLM):
    def behave(request: web.Request, body: dict) -> None:
        server.calls[-1] = request.path_qs

    return behave


async def test_a_step_sleeps_and_wakes_weights_before_the_cache(sleepers, servers, tmp_path: Path):
    await put_to_sleep(sleepers)
    assert [server.calls for server in servers] == [["/sleep?level=2&mode=abort"]] * 2
    await put_to_sleep(sleepers)  # they sleep already
    assert len(servers[0].calls) == 1
    publisher = WeightPublisher(sleepers, files=WeightFiles(tmp_path, tmp_path))
    await publisher.publish(1, BUCKETS)
    assert servers[0].calls[1:] == [
        "/wake_up?tags=weights",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/wake_up?tags=kv_cache",
        "/reset_prefix_cache",
        "/resume",
    ]
    assert not sleepers.asleep
    answer = await sleepers.generate([1], SamplingParams(max_tokens=1), deadline=5)
    assert answer.versions == (1, 1, 1)
    servers[0].calls.clear()
    await publisher.publish(2, BUCKETS)  # nothing sleeps: as ever
    assert servers[0].calls[0] == "/pause" and not any("wake" in call for call in servers[0].calls)


async def test_an_adapter_wakes_engines_too(servers, tmp_path: Path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    urls = tuple(server.url for server in servers)
    async with EnginePool(EngineSettings(urls=urls, sleep_level=1, lora_rank=8)) as pool:
        await put_to_sleep(pool)
        servers[0].calls.clear()
        await WeightPublisher(pool, files=WeightFiles(tmp_path, tmp_path)).publish_adapter(1, tmp_path)
        kinds = ["/wake_up", "/v1/load_lora_adapter", "/update_weight_version", "/wake_up", "/reset_prefix_cache"]
        assert servers[0].calls == [*kinds, "/resume"]


async def test_an_engine_that_cannot_sleep_is_an_error(sleepers, servers):
    servers[1].behave["/sleep"] = lambda request, body: web.Response(status=500, text="no allocator")
    with pytest.raises(InfrastructureFault, match="no allocator"):
        await put_to_sleep(sleepers)


async def test_an_engine_that_cannot_wake_is_an_error_and_does_not_serve(sleepers, servers, tmp_path: Path):
    await put_to_sleep(sleepers)
    servers[1].behave["/wake_up"] = lambda request, body: web.Response(status=500, text="out of memory")
    with pytest.raises(InfrastructureFault, match="out of memory"):
        await WeightPublisher(sleepers, files=WeightFiles(tmp_path, tmp_path)).publish(1, BUCKETS)
    assert not sleepers.members[1].ready


async def test_pools_that_share_nothing_never_sleep(pool, servers):
    for server in servers:
        server.calls.clear()
    await put_to_sleep(pool)
    assert not pool.asleep and not servers[0].calls


def test_the_flag_is_for_gpus_only():
    on_gpu = EngineSettings(model_path="m", device="cuda", sleep_level=1)
    assert "--enable-sleep-mode" in server_command(on_gpu, 1)
    assert "--enable-sleep-mode" not in server_command(EngineSettings(model_path="m", device="cuda"), 1)
    assert "--enable-sleep-mode" not in server_command(EngineSettings(model_path="m", device="cpu", sleep_level=1), 1)
