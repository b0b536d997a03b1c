"""Routing, retries, deadlines and faults of the pool, with scripted servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import orjson
import pytest
from aiohttp import web

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault, ParityError
from tau2_lightning.rollout.engine.generation import EngineRejected, SamplingParams
from tau2_lightning.rollout.engine.pool import ATTEMPTS, EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tests.rollout.proxy.rig import until

GENERATE = "/inference/v1/generate"
SAMPLING = SamplingParams(max_tokens=3)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Shorten the intervals of supervision and retries, which are chosen for real servers."""
    monkeypatch.setattr("tau2_lightning.rollout.engine.pool.BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.WATCH_SECONDS", 0.01)


def answering(status: int, text: str = "no") -> Callable[..., web.Response]:
    return lambda request, body: web.Response(status=status, text=text)


async def hang(request: web.Request, body: object) -> None:
    await asyncio.sleep(60)


async def test_the_smallest_served_length_holds(pool):
    assert pool.max_model_len == 1000


async def test_sessions_stay_and_load_spreads(pool, servers):
    homes: dict[str, tuple[int, ...]] = {}
    for turn in range(3):
        for session in "abcdef":
            generation = await pool.generate([1, 2], SAMPLING, session=session, deadline=5)
            assert homes.setdefault(session, generation.token_ids) == generation.token_ids, turn
    for server in servers:
        server.behave[GENERATE] = hang
    work = [asyncio.create_task(pool.generate([1], SAMPLING, deadline=30)) for _ in range(10)]
    await until(lambda: [server.inflight for server in servers] == [5, 5])
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    await until(lambda: [server.inflight for server in servers] == [0, 0])  # the servers must notice the cancellation
    assert [member.inflight for member in pool.members] == [0, 0]


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        (answering(500), "http 500"),
        (answering(200, '{"choices": [{'), "bad answer"),
        (lambda request, body: web.json_response({"choices": []}), "bad answer"),
        (lambda request, body: request.transport.close(), "connection"),
        (answering(401), "unauthorized"),
    ],
)
async def test_a_fault_is_retried_elsewhere_and_counted(pool, servers, broken, cause):
    home = await pool.generate([1], SAMPLING, session="s", deadline=5)
    first = servers[home.token_ids[0] - 1]
    first.behave[GENERATE] = broken
    moved = await pool.generate([1], SAMPLING, session="s", deadline=5)
    assert moved.token_ids != home.token_ids
    assert pool.faults[f"engine:{cause}"] == 1
    for server in servers:
        server.behave[GENERATE] = broken
    with pytest.raises(InfrastructureFault) as caught:
        await pool.generate([1], SAMPLING, session="s", deadline=20)
    assert caught.value.cause == cause and pool.faults[f"engine:{cause}"] == 1 + ATTEMPTS


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_the_callers_fault_is_not_retried(pool, servers, status):
    for server in servers:
        server.behave[GENERATE] = answering(status, "prompt too long")
    with pytest.raises(EngineRejected, match="prompt too long"):
        await pool.generate([1], SAMPLING, deadline=5)
    assert sum(server.calls.count(GENERATE) for server in servers) == 1


@pytest.mark.parametrize("call", ["generate", "score", "stream"])
async def test_deadlines_name_engine_and_work(pool, servers, call):
    for server in servers:
        server.behave[GENERATE] = hang
    words = {"generate": "generating", "score": "scoring 2 tokens", "stream": "streaming"}

    async def work() -> None:
        if call == "stream":
            async for _ in pool.stream([1, 2], SAMPLING, deadline=0.2):
                raise AssertionError("nothing should come")
        elif call == "score":
            await pool.score([1, 2], deadline=0.2)
        else:
            await pool.generate([1, 2], SAMPLING, deadline=0.2)

    with pytest.raises(DeadlineExceeded, match=rf"{words[call]} on engine \d at http://127") as caught:
        await work()
    assert caught.value.component == "engine" and caught.value.seconds == 0.2


def scoring(*logprobs: float, version: str | None = None) -> Callable[..., web.Response]:
    entries = [None, *({str(token): {"logprob": value}} for token, value in enumerate(logprobs, start=2))]
    choice = {"weight_versions": version and [{"version": version, "start": 0, "end": 1}]}
    return lambda request, body: web.json_response({"choices": [choice], "usage": {}, "prompt_logprobs": entries})


async def test_parity_is_of_every_engine(pool, servers):
    for server in servers:
        server.behave[GENERATE] = scoring(-1.0, -2.0)
    row, expected = [1, 2, 3], [-1.0, -2.0]
    report = await check_parity(pool, [row], [expected], tolerance=Tolerance.largest(1e-6))
    assert report.tokens == 4 and report.max == 0
    for wrong, name in enumerate(("engine 0", "engine 1")):
        servers[wrong].behave[GENERATE] = scoring(-1.0, -2.5)
        with pytest.raises(ParityError, match=rf"-2\.500000 in {name}, -2\.000000 in the trainer"):
            await check_parity(pool, [row], [expected], tolerance=Tolerance.largest(1e-6))
        servers[wrong].behave[GENERATE] = scoring(-1.0, -2.0)
    servers[0].behave[GENERATE] = answering(500)  # an engine that serves requests must be checked
    with pytest.raises(InfrastructureFault, match="http 500"):
        await check_parity(pool, [row], [expected], tolerance=Tolerance.largest(1e-6))
    pool.members[0].ready = False
    assert (await check_parity(pool, [row], [expected], tolerance=Tolerance.largest(1e-6))).tokens == 2


async def test_a_stale_server_is_found_by_number_however_small_the_difference(pool, servers):
    row, expected = [1, 2, 3], [[-1.0, -2.0]]
    check = partial(check_parity, pool, [row], expected, tolerance=Tolerance.largest(1.0))
    for server in servers:
        server.behave[GENERATE] = scoring(-1.0, -2.0, version="5")
    assert (await check(version=5)).max == 0
    servers[1].behave[GENERATE] = scoring(-1.0, -2.0, version="4")
    with pytest.raises(ParityError, match="engine 1 serves weights of version 4, the trainer is at version 5"):
        await check(version=5)
    servers[1].behave[GENERATE] = scoring(-1.0, -2.0, version="default")  # vLLM's name before the first publication
    with pytest.raises(ParityError, match="engine 1 serves weights that no run has published"):
        await check(version=5)
    servers[1].behave[GENERATE] = scoring(-1.0, -2.0)  # a vLLM that reports no version
    assert (await check(version=5)).tokens == 4
    assert (await check()).tokens == 4


def streaming(*events: object, cut: bool = False) -> Callable[..., Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request, body: object) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(b"data: " + orjson.dumps(event) + b"\n\n")
        if cut:
            request.transport.close()  # type: ignore[union-attr]
        else:
            await response.write(b"data: [DONE]\n\n")
        return response

    return answer


def event(token: int, reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "token_ids": [token], "finish_reason": reason, "logprobs": {"content": [{"logprob": -1.0}]}}
    if reason:
        choice["weight_versions"] = [{"version": "4", "start": 0, "end": 1}, {"version": "5", "start": 1, "end": 2}]
    return {"choices": [choice]}


async def test_a_stream_names_versions_at_its_end(pool, servers):
    for server in servers:
        server.behave[GENERATE] = streaming(event(11), event(12, "length"))
    chunks = [chunk async for chunk in pool.stream([1], SAMPLING, deadline=5)]
    assert [chunk.token_ids for chunk in chunks] == [(11,), (12,)]
    assert [chunk.finish_reason for chunk in chunks] == ["", "length"]
    assert [chunk.stream_versions for chunk in chunks] == [(), (4, 5)]


async def test_seeds_go_to_running_servers_that_say_they_stand_them(servers):
    """A seed in a request would crash a stock CPU server."""
    servers[1].behave["/v1/models"] = lambda request, body: web.json_response(
        {"data": [{"max_model_len": 1000}]}, headers={"X-Tau2-Lightning-Seeds": "1"}
    )
    async with EnginePool(EngineSettings(urls=tuple(server.url for server in servers))) as pool:
        await asyncio.gather(*(pool.generate([1], SamplingParams(4, seed=5), deadline=5) for _ in range(8)))
    sent = [
        [b["sampling_params"].get("seed") for b in s.bodies if b.get("sampling_params", {}).get("max_tokens") == 4]
        for s in servers
    ]
    assert set(sent[0]) == {None} and set(sent[1]) == {5}


@pytest.mark.parametrize("cut", [True, False])
async def test_a_stream_that_ends_early_is_a_fault(pool, servers, cut):
    for server in servers:
        server.behave[GENERATE] = streaming(event(11), cut=cut)
    got = []
    with pytest.raises(InfrastructureFault):
        async for chunk in pool.stream([1], SAMPLING, deadline=5):
            got.append(chunk.token_ids)
    assert got == [(11,)]
    assert sum(server.calls.count(GENERATE) for server in servers) == 1  # no retry after the first token


async def test_a_stream_that_never_began_is_retried(pool, servers):
    servers[0].behave[GENERATE] = answering(503)
    servers[1].behave[GENERATE] = streaming(event(11), event(12, "stop"))
    for _ in range(3):
        assert len([chunk async for chunk in pool.stream([1], SAMPLING, deadline=5)]) == 2


async def test_leaving_a_stream_aborts_it(pool, servers):
    async def endless(request: web.Request, body: object) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"data: " + orjson.dumps(event(1)) + b"\n\n")
            await asyncio.sleep(0.01)

    for server in servers:
        server.behave[GENERATE] = endless
    stream = pool.stream([1], SAMPLING, deadline=10)
    async for _ in stream:
        break
    await stream.aclose()
    await until(lambda: [server.inflight for server in servers] == [0, 0])


async def test_a_taken_port_is_a_configuration_error(servers):
    port = int(servers[0].url.rpartition(":")[2])
    with pytest.raises(ConfigError, match="cannot listen"):
        await EnginePool(EngineSettings(model_path="x", port=port)).start()


async def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        await EnginePool(EngineSettings(model_path="x")).start()


async def test_a_server_that_dies_while_starting_shows_its_log(monkeypatch, tmp_path):
    import sys

    command = [sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)"]
    monkeypatch.setattr("tau2_lightning.rollout.engine.server.server_command", lambda settings, port: command)
    pool = EnginePool(EngineSettings(model_path="x", log_path=tmp_path / "engine.log"))
    await pool.start()
    try:
        with pytest.raises(InfrastructureFault, match=r"(?s)died while starting.*no such model"):
            await asyncio.wait_for(pool.wait_ready(), 20)
    finally:
        await pool.stop()


async def test_a_server_that_never_answers_shows_its_log(monkeypatch, tmp_path):
    import sys

    command = [sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)"]
    monkeypatch.setattr("tau2_lightning.rollout.engine.server.server_command", lambda settings, port: command)
    pool = EnginePool(EngineSettings(model_path="x", log_path=tmp_path / "engine.log", start_timeout_s=0.7))
    await pool.start()
    try:
        with pytest.raises(DeadlineExceeded, match=r"(?s)starting engine 0 .*loading"):
            await asyncio.wait_for(pool.wait_ready(), 20)
        server = pool.members[0].server
        assert server is not None and not server.alive
    finally:
        await pool.stop()


async def test_a_defect_while_bringing_up_is_seen_by_who_waits(servers):
    servers[0].behave["/v1/models"] = lambda request, body: web.json_response({"data": "surprise"})
    pool = EnginePool(EngineSettings(urls=(servers[0].url,)))
    await pool.start()
    with pytest.raises(TypeError):
        await asyncio.wait_for(pool.wait_ready(), 5)
    with pytest.raises(InfrastructureFault):
        await pool.generate([1], SAMPLING, deadline=5)
    await pool.stop()
