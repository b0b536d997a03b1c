"""The load of engines from vLLM's own metrics."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from tau2_lightning.rollout.engine.meter import EngineMeter
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.statistics import EngineLoad, EngineReading, over_engines, read_metrics
from tests.rollout.engine.fake_vllm import FakeVLLM
from tests.rollout.proxy.rig import until

# As vLLM 0.32 writes it, shortened.
PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="policy"} 12.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="policy"} 3.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="policy"} 0.5
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="policy"} 1000.0
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{engine="0",model_name="policy"} 800.0
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="policy"} 2.0
"""


def reading(kv: float, queries: float, hits: float, preemptions: float = 0.0) -> EngineReading:
    counters = {"prefix_queries": queries, "prefix_hits": hits, "preemptions": preemptions}
    return EngineReading({"kv_usage": kv, "running": 4.0, "queue": 1.0}, counters)


def test_a_page_of_vllm_is_read() -> None:
    found = read_metrics(PAGE)
    assert found is not None
    assert found.gauges == {"kv_usage": 0.5, "running": 12.0, "queue": 3.0}
    assert found.counters == {"prefix_queries": 1000.0, "prefix_hits": 800.0, "preemptions": 2.0}


@pytest.mark.parametrize("text", ["", '{"success": true}', "<html>", "python_info 1.0\n"])
def test_another_page_holds_nothing(text: str) -> None:
    assert read_metrics(text) is None


def test_gauges_are_averaged_and_counters_are_of_the_time_between() -> None:
    load = EngineLoad()
    for one in (reading(0.2, 100, 50), reading(0.6, 300, 200, 3)):
        load.add(one)
    found = load.take()
    assert found["kv_usage/mean"] == pytest.approx(0.4) and found["kv_usage/max"] == 0.6
    assert found["prefix_hit_rate"] == 150 / 200 and found["preemptions"] == 3
    load.add(reading(0.1, 400, 210, 3))
    assert load.take()["prefix_hit_rate"] == 10 / 100
    assert load.take() == {}
    load.add(reading(0.1, 40, 10, 1))  # restarted: counters begin at 0
    found = load.take()
    assert found["prefix_hit_rate"] == 10 / 40 and found["preemptions"] == 1


def test_several_engines_have_numbers_of_their_own() -> None:
    found = over_engines({"0": {"kv_usage/max": 0.5, "preemptions": 1}, "1": {"kv_usage/max": 0.9, "preemptions": 2}})
    assert found["engine/kv_usage/max"] == 0.9 and found["engine/preemptions"] == 3
    assert found["engine/0/kv_usage/max"] == 0.5 and found["engine/1/preemptions"] == 2
    assert set(over_engines({"0": {"preemptions": 1}})) == {"engine/preemptions"}


async def test_servers_are_read_while_they_work(pool: EnginePool, servers: list[FakeVLLM]) -> None:
    servers[0].behave["/metrics"] = lambda request, body: web.Response(text=PAGE)
    servers[1].behave["/metrics"] = lambda request, body: web.Response(status=404)
    meter = EngineMeter(pool, every=0.01)
    running = asyncio.create_task(meter.run())
    try:
        await asyncio.sleep(0.05)
        assert not any("/metrics" in server.calls for server in servers), "an idle server was read"
        for member in pool.members:
            member.inflight = 1
        await until(lambda: servers[0].calls.count("/metrics") > 2)
    finally:
        running.cancel()
    pool.cut_off = 5
    found = meter.take()
    assert found["engine/queue/max"] == 3.0 and found["engine/cut_off"] == 5
    assert servers[1].calls.count("/metrics") == 1, "a server without metrics was asked again"
    assert meter.take() == {"engine/cut_off": 0.0}


# As SGLang 0.5.23 writes it, shortened.
SGLANG_PAGE = """# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="policy",tp_rank="0"} 12.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="policy",tp_rank="0"} 3.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="policy",tp_rank="0"} 0.5
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="policy"} 1000.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="policy"} 800.0
# TYPE sglang:num_retracted_requests_total counter
sglang:num_retracted_requests_total{engine_type="unified",model_name="policy",tp_rank="0"} 2.0
"""


def test_a_page_of_sglang_is_read_under_the_same_names() -> None:
    assert read_metrics(SGLANG_PAGE) == read_metrics(PAGE)
