"""SGLang's client through the pool, with scripted servers: requests, deadlines, pauses, adapters."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.engine.generation import EngineRejected, SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.engine.sglang.client import SPARE_TOKENS, SGLangClient
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tests.rollout.engine.fake_sglang import FakeSGLang
from tests.rollout.engine.fake_vllm import FakeVLLM
from tests.rollout.proxy.rig import until

GENERATE = "/generate"
SAMPLING = SamplingParams(max_tokens=3)


def client_of(pool: EnginePool, index: int = 0) -> SGLangClient:
    client = pool.members[index].client
    assert isinstance(client, SGLangClient)
    return client


async def test_tokens_versions_and_scores(pool, servers):
    for server in servers:
        server.version = "5"
    generation = await pool.generate([1, 2], SAMPLING, deadline=5)
    assert generation.token_ids[1:] == (7, 8) and generation.versions == (5, 5, 5)
    report = await check_parity(pool, [[1, 2, 3]], [[-0.25, -0.25]], tolerance=Tolerance.largest(1e-6), version=5)
    assert report.tokens == 4


async def test_the_served_length_leaves_room_for_what_sglang_keeps(pool):
    assert pool.max_model_len == 1000 - SPARE_TOKENS


@pytest.mark.parametrize(
    ("token_ids", "sampling", "named"),
    [
        ([1, 100], SAMPLING, "token id 100 is not among the 100"),
        ([1, -1], SAMPLING, "token id -1"),
        ([1], SamplingParams(max_tokens=3, logit_bias={100: 1.0}), "token id 100"),
        ([1], SamplingParams(max_tokens=3, stop_token_ids=(-2,)), "token id -2"),
        ([], SAMPLING, "one or more token ids"),
        ([1.5], SAMPLING, "one or more token ids"),
        ([1] * 990, SAMPLING, "990 tokens and max_tokens=3 are more than the 992"),
    ],
)
async def test_what_would_end_the_server_is_not_sent(pool, servers, token_ids, sampling, named):
    with pytest.raises(EngineRejected, match=named):
        await pool.generate(token_ids, sampling, deadline=5)
    with pytest.raises(EngineRejected, match=named):
        async for _ in pool.stream(token_ids, sampling, deadline=5):
            pass
    assert not any(server.calls for server in servers)
    await pool.generate([1, 99], SAMPLING, deadline=5)  # control


async def test_scores_of_unknown_tokens_are_not_asked_for(pool, servers):
    with pytest.raises(EngineRejected, match="token id 100"):
        await pool.score([1, 100], deadline=5)
    assert not any(server.calls for server in servers)


async def slow(request: web.Request, body: dict) -> None:
    await asyncio.sleep(60)


def until_aborted(server: FakeSGLang, tokens: tuple[int, ...]) -> None:
    """Let ``server`` answer a generate request when it is aborted, with ``tokens``."""
    aborted = asyncio.Event()

    async def generate(request: web.Request, body: dict) -> web.Response:
        await asyncio.wait_for(aborted.wait(), 10)
        return web.json_response(server.answer(tokens, "abort"))

    def abort(request: web.Request, body: dict) -> None:
        assert body["rid"] in [sent.get("rid") for sent in server.bodies[:-1]]
        aborted.set()

    server.behave |= {GENERATE: generate, "/abort_request": abort}


async def test_a_deadline_aborts_the_request_and_keeps_its_tokens(pool, servers):
    for server in servers:
        until_aborted(server, (4, 5))
    generation = await pool.generate([1], SamplingParams(max_tokens=900), deadline=0.2)
    assert (generation.token_ids, generation.finish_reason, generation.cut) == ((4, 5), "length", True)
    assert pool.cut_off == 1


async def test_a_deadline_without_a_token_is_a_fault(pool, servers):
    for server in servers:
        until_aborted(server, ())
    with pytest.raises(DeadlineExceeded, match="generating on engine"):
        await pool.generate([1], SAMPLING, deadline=0.2)


async def test_cancelling_closes_the_connection(pool, servers):
    for server in servers:
        server.behave[GENERATE] = slow
    work = asyncio.create_task(pool.generate([1], SAMPLING, deadline=30))
    await until(lambda: sum(server.inflight for server in servers) == 1)
    work.cancel()
    await until(lambda: sum(server.inflight for server in servers) == 0)
    assert client_of(pool)._running == client_of(pool, 1)._running == 0


async def test_a_stream_brings_versions_at_its_end(pool, servers):
    async def stream(request: web.Request, body: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for tokens, reason in (((4,), None), ((4, 5), "length")):
            await response.write(b"data: " + orjson.dumps(servers[0].answer(tokens, reason)) + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    for server in servers:
        server.version, server.behave[GENERATE] = "2", stream
    chunks = [chunk async for chunk in pool.stream([1], SAMPLING, deadline=5)]
    assert [chunk.token_ids for chunk in chunks] == [(4,), (5,)]
    assert chunks[-1].stream_versions == (2, 2) and chunks[-1].finish_reason == "length"


async def test_waiting_holds_new_requests_until_the_running_ones_have_ended(pool, servers):
    client, release = client_of(pool), asyncio.Event()

    async def generate(request: web.Request, body: dict) -> None:
        await asyncio.wait_for(release.wait(), 10)

    servers[0].behave[GENERATE] = generate
    running = asyncio.create_task(client.generate([1], SAMPLING))
    await until(lambda: servers[0].calls == [GENERATE])
    pause = asyncio.create_task(client.pause("wait"))
    await asyncio.sleep(0.02)
    late = asyncio.create_task(client.generate([2], SAMPLING))
    await asyncio.sleep(0.05)
    assert servers[0].calls == [GENERATE] and not pause.done()
    del servers[0].behave[GENERATE]
    release.set()
    await asyncio.wait_for(asyncio.gather(running, pause, return_exceptions=True), 10)
    assert servers[0].calls == [GENERATE, "/pause_generation"] and servers[0].bodies[-1] == {"mode": "retract"}
    servers[0].behave[GENERATE] = lambda request, body: web.json_response(servers[0].answer())
    await client.resume()
    assert (await asyncio.wait_for(late, 10)).token_ids == (1, 7, 8)


async def test_the_modes_of_a_pause_in_sglangs_words(pool, servers):
    client = client_of(pool)
    for mode in ("keep", "abort"):
        await client.pause(mode)
        await client.resume()
    assert [body for body in servers[0].bodies if body] == [{"mode": "retract"}, {"mode": "abort"}]


async def test_a_version_ends_no_request(pool, servers):
    await client_of(pool).set_version(3)
    assert servers[0].version == "3" and not servers[0].aborted.is_set()


async def test_each_adapter_has_a_name_of_its_own_and_the_last_one_goes(pool, servers, tmp_path: Path):
    client = client_of(pool)
    for version in (1, 2):
        await client.load_adapter(version, tmp_path)
        assert servers[0].adapters == {client.model} and servers[0].version == str(version)
        await client.generate([1], SAMPLING)
        assert servers[0].bodies[-1]["lora_path"] == client.model


async def test_an_update_that_broke_off_is_ended_before_the_next(pool, servers):
    client = client_of(pool)
    servers[0].updating = True
    await client.begin_update()
    assert servers[0].calls == ["/begin_weight_update", "/end_weight_update", "/begin_weight_update"]


async def test_another_engine_behind_the_url_is_named(model):
    stranger = await FakeVLLM().start()
    stranger.behave["/model_info"] = lambda request, body: web.Response(status=404)
    pool = EnginePool(EngineSettings(backend="sglang", urls=(stranger.url,), model_path=str(model)))
    try:
        await pool.start()
        with pytest.raises(InfrastructureFault, match="no SGLang server, which allocation_mode names"):
            await asyncio.wait_for(pool.wait_ready(), 10)
    finally:
        await pool.stop()
        await stranger.stop()


async def test_an_engine_core_is_asked_for_its_own_numbers(pool, servers):
    client = client_of(pool)
    assert await client.responds(1.0) and servers[0].calls[-1] == "/server_info"
    servers[0].behave["/server_info"] = slow
    assert not await client.responds(0.1)
