"""Completions at their deadline: the tokens of a working engine are kept; an idle engine is a fault."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from aiohttp import web

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.engine import cut_off, generation
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tests.rollout.engine.fake_vllm import FakeVLLM

GENERATE = "/inference/v1/generate"
LONG = SamplingParams(max_tokens=1000)


def choice(tokens: list[int], reason: str | None = None, **more: Any) -> dict[str, Any]:
    content = [{"logprob": -0.25 * (at + 1)} for at in range(len(tokens))]
    return {"index": 0, "token_ids": tokens, "finish_reason": reason, "logprobs": {"content": content}, **more}


def slow_stream(every: float, stop_after: int | None = None) -> Any:
    """Samples a token at a fixed interval; after ``stop_after`` tokens it samples nothing more."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert body["stream"] is True
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        token = 10
        while stop_after is None or token < 10 + stop_after:
            await response.write(b"data: " + orjson.dumps({"choices": [choice([token])]}) + b"\n\n")
            token += 1
            await asyncio.sleep(every)
        await asyncio.sleep(60)
        return response

    return answer


def ends_itself(answer: dict[str, Any]) -> Any:
    """A server with our extension, which keeps the deadline that it is told."""

    async def generate(request: web.Request, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(float(request.headers["X-Tau2-Lightning-Deadline"]))
        return web.json_response({"choices": [answer], "usage": {"prompt_tokens": 4}})

    return generate


def extended(request: web.Request, body: Any) -> web.Response:
    return web.json_response({"data": [{"max_model_len": 5000}]}, headers={"X-Tau2-Lightning-Seeds": "1"})


@pytest.fixture
async def alone():
    server = await FakeVLLM().start()
    yield server
    await server.stop()


def pool_of(server: FakeVLLM) -> EnginePool:
    return EnginePool(EngineSettings(urls=(server.url,)))


async def test_a_long_thought_at_a_stock_server_is_kept_token_by_token(alone: FakeVLLM) -> None:
    alone.behave[GENERATE] = slow_stream(0.02)
    async with pool_of(alone) as pool:
        pool.members[0].version = 7
        found = await pool.generate([1, 2], LONG, deadline=0.4)
        count = len(found.token_ids)
        assert 2 <= count < 25 and found.token_ids == tuple(range(10, 10 + count))
        assert len(found.logprobs) == count and found.versions == (7,) * count
        assert (found.finish_reason, found.cut, pool.cut_off) == ("length", True, 1)
        assert not pool.faults


async def test_a_stream_of_a_client_is_kept_too(alone: FakeVLLM) -> None:
    alone.behave[GENERATE] = slow_stream(0.02)
    async with pool_of(alone) as pool:
        pool.members[0].version = 3
        parts = [part async for part in pool.stream([1], LONG, deadline=0.4)]
    whole = cut_off.join(parts)
    assert whole.finish_reason == "length" and whole.cut and whole.versions == (3,) * len(whole.token_ids)
    assert whole.token_ids == tuple(range(10, 10 + len(whole.token_ids))) and len(whole.token_ids) >= 2


async def test_a_stream_that_has_ended_is_not_cut_off_by_a_connection_that_stays_open(alone: FakeVLLM) -> None:
    spans = [{"version": "4", "start": 0, "end": 2}]

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        last = choice([7, 8], "stop", weight_versions=spans)
        await response.write(b"data: " + orjson.dumps({"choices": [last]}) + b"\n\n")
        await asyncio.sleep(60)
        return response

    alone.behave[GENERATE] = answer
    async with pool_of(alone) as pool:
        found = await pool.generate([1], LONG, deadline=0.3)
        parts = [part async for part in pool.stream([1], LONG, deadline=0.3)]
        assert pool.cut_off == 0
    for whole in (found, cut_off.join(parts)):
        assert (whole.token_ids, whole.versions) == ((7, 8), (4, 4))
        assert (whole.finish_reason, whole.cut) == ("stop", False)


@pytest.mark.parametrize("stop_after", [0, 3])
async def test_an_engine_that_has_stopped_to_produce_is_a_fault(
    alone: FakeVLLM, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    monkeypatch.setattr(generation, "PROGRESS_SECONDS", 0.2)
    alone.behave[GENERATE] = slow_stream(0.01, stop_after)
    async with pool_of(alone) as pool:
        with pytest.raises(DeadlineExceeded, match="generating on engine 0"):
            await pool.generate([1], LONG, deadline=0.6)
        with pytest.raises(DeadlineExceeded, match="streaming on engine 0"):
            async for _ in pool.stream([1], LONG, deadline=0.6):
                pass
        assert pool.cut_off == 0


async def test_a_server_with_our_extension_ends_the_request_itself(alone: FakeVLLM) -> None:
    spans = [{"version": "4", "start": 0, "end": 1}, {"version": "5", "start": 1, "end": 3}]
    alone.behave["/v1/models"] = extended
    alone.behave[GENERATE] = ends_itself(choice([7, 8, 9], "abort", weight_versions=spans, cut_after_idle_s=0.1))
    async with pool_of(alone) as pool:
        found = await pool.generate([1], LONG, deadline=0.2)
        assert (found.token_ids, found.logprobs) == ((7, 8, 9), (-0.25, -0.5, -0.75))
        assert (found.versions, found.finish_reason, found.cut) == ((4, 5, 5), "length", True)
        assert pool.cut_off == 1 and "stream" not in alone.bodies[-1]


@pytest.mark.parametrize(
    "answer", [choice([], "abort", cut_after_idle_s=0.0), choice([7], "abort", cut_after_idle_s=1e4)]
)
async def test_what_it_could_not_sample_is_a_fault(alone: FakeVLLM, answer: dict[str, Any]) -> None:
    alone.behave["/v1/models"] = extended
    alone.behave[GENERATE] = ends_itself(answer)
    async with pool_of(alone) as pool:
        with pytest.raises(DeadlineExceeded) as caught:
            await pool.generate([1], LONG, deadline=0.2)
        assert caught.value.seconds == 0.2 and pool.cut_off == 0


async def test_an_abort_for_another_reason_stays_one(alone: FakeVLLM) -> None:
    """Negative control: weight updates abort requests, too."""
    alone.behave["/v1/models"] = extended
    alone.behave[GENERATE] = ends_itself(choice([7], "abort"))
    async with pool_of(alone) as pool:
        found = await pool.generate([1], LONG, deadline=0.2)
    assert found.finish_reason == "abort" and not found.cut


@pytest.mark.parametrize(
    ("sampling", "short"),
    [
        (SamplingParams(9), True),
        (SamplingParams(9, stop=("x",)), False),
        (SamplingParams(9, logprobs=3), False),
        (SamplingParams(9, presence_penalty=0.5), False),
        (SamplingParams(9, structured={"json": {}}), False),
        (SamplingParams(9, top_p=0.5, min_p=0.1, seed=3), True),
    ],
)
async def test_only_the_short_path_keeps_deadlines(alone: FakeVLLM, sampling: SamplingParams, short: bool) -> None:
    """The client must know which requests the extension takes: others would wait for ever."""
    from tau2_lightning.rollout.engine.wire import request_body

    pytest.importorskip("vllm")
    from tau2_lightning.rollout.engine.in_vllm.generate import plain_request

    alone.behave["/v1/models"] = extended
    async with pool_of(alone) as pool:
        client = pool.members[0].client
        assert client.ends_in_time(sampling) is short
        assert (plain_request(request_body([1], sampling, model=None, seeds=True)) is not None) is short
