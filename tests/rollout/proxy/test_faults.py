"""The proxy's server breaks off under running episodes: they finish, or fail with a cause, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.episode.client import PolicyClient, RequestRejected, StraightClient
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.proxy import server as proxy_server
from tau2_lightning.rollout.proxy.app import ProxySettings
from tau2_lightning.rollout.service import episode_transport
from tests.rollout.proxy.rig import CALL, TOOLS, Rig, until

REQUEST = EpisodeRequest(task=None, task_id="t", group_id="g", sample=0, seed=0)


class TwoTurns:
    """An agent that only knows an OpenAI base URL."""

    async def run(self, data: Any, *, base_url: str, api_key: str, http_client: Any, **_: Any) -> float:
        client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)
        messages: list[Any] = []
        for text in ("one", "two"):
            messages.append({"role": "user", "content": text})
            try:
                answer = await client.chat.completions.create(model="policy", messages=messages)
            except openai.APIConnectionError as error:
                raise InfrastructureFault("proxy", "connection", str(error)) from error
            messages.append(answer.choices[0].message.model_dump(exclude_none=True))
        return 1.0


def breaking(rig: Rig, how: str) -> None:
    if how == "cancelled":
        next(task for task in asyncio.all_tasks() if task.get_name() == "proxy server").cancel()
    else:
        rig.server._server.force_exit = rig.server._server.should_exit = True


@pytest.mark.parametrize("how", ["cancelled", "exits"])
async def test_episodes_survive_the_proxy_server(how: str) -> None:
    async with Rig(ProxySettings(request_timeout=20)) as rig, httpx.AsyncClient(timeout=20) as client:
        url = rig.server.base_url
        runner = EpisodeRunner(TwoTurns(), rig.store, base_url=url, http_client=client, timeout=60, retries=2)
        first, second = asyncio.Event(), asyncio.Event()
        rig.engine.hold = first
        episodes = [asyncio.create_task(runner.run(REQUEST)) for _ in range(4)]
        await until(lambda: rig.engine.held == 4)
        rig.engine.hold = second
        first.set()
        await until(lambda: rig.engine.held == len(rig.engine.calls) == 4)  # the second turns are at work
        breaking(rig, how)
        await until(lambda: rig.server.restarts == 1, 15)
        second.set()
        rollouts = await asyncio.gather(*episodes)
        assert [len(row.turns) for rollout in rollouts for row in rollout.trajectories] == [2] * 4
        assert set(runner.faults) == {"proxy:connection"} and len(rig.store) == 0
        assert (rig.server.restarts, rig.server.base_url) == (1, url)


async def test_a_proxy_that_keeps_breaking_is_a_fault_with_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_server, "MAX_RESTARTS", 0)
    async with httpx.AsyncClient(timeout=5) as client:
        rig = await Rig(ProxySettings()).__aenter__()
        runner = EpisodeRunner(
            TwoTurns(), rig.store, base_url=rig.server.base_url, http_client=client, timeout=20, retries=0
        )
        breaking(rig, "exits")
        assert rig.server._task is not None
        with pytest.raises(InfrastructureFault, match="its server ended 1 times"):
            await asyncio.wait_for(asyncio.shield(rig.server._task), 10)
        with pytest.raises(InfrastructureFault, match="proxy: connection"):
            await runner.run(REQUEST)
        await rig.http.aclose()
        assert len(rig.store) == 0


def door(rig: Rig, name: str) -> httpx.AsyncClient:
    """A client of the proxy: over HTTP, or the built-in episodes' to the application in this process."""
    if name == "in process":
        return StraightClient(transport=httpx.ASGITransport(app=rig.app), timeout=60)
    return httpx.AsyncClient(timeout=60)


DOORS = pytest.mark.parametrize("name", ["http", "in process"])


@DOORS
async def test_what_the_built_in_agent_is_told(name: str) -> None:
    async with Rig(ProxySettings(request_timeout=5)) as rig, door(rig, name) as http:
        session = rig.store.start()
        body = {"messages": [{"role": "user", "content": "x"}]}
        client = PolicyClient(rig.server.base_url, session.api_key, http, timeout=5)
        assert await client.complete(body) == {"role": "assistant", "content": "hello"}
        rig.engine._max_model_len = 3
        with pytest.raises(RequestRejected) as rejected:
            await client.complete(body)
        assert rejected.value.code == "context_length_exceeded"
        rig.engine._max_model_len = 1000
        rig.engine.fault = InfrastructureFault("engine", "crash")
        with pytest.raises(InfrastructureFault, match=r"proxy: engine_crash"):
            await client.complete(body)
        rig.engine.fault = ZeroDivisionError("a defect")
        with pytest.raises(InfrastructureFault, match=r"proxy: internal_error"):
            await client.complete(body)
        stranger = PolicyClient(rig.server.base_url, "forged", http, timeout=5)
        with pytest.raises(InfrastructureFault, match="proxy: invalid_api_key"):
            await stranger.complete(body)
        rig.engine.fault, rig.engine.delay = None, 60
        with pytest.raises(InfrastructureFault, match="engine: timeout"):
            await PolicyClient(rig.server.base_url, session.api_key, http, timeout=1).complete(body)
        await until(lambda: rig.engine.cancelled == 1)
        await until(lambda: session.in_flight == 0)  # it is free for the next call
        rig.store.abort(session.session_id)
        with pytest.raises(InfrastructureFault, match="proxy: invalid_api_key"):
            await client.complete(body)


@DOORS
async def test_a_session_aborted_under_a_call_ends_the_call(name: str) -> None:
    async with Rig(ProxySettings()) as rig, door(rig, name) as http:
        session = rig.store.start()
        rig.engine.delay = 60
        client = PolicyClient(rig.server.base_url, session.api_key, http, timeout=30)
        call = asyncio.create_task(client.complete({"messages": [{"role": "user", "content": "x"}]}))
        await until(lambda: rig.engine.held == 1)
        rig.store.abort(session.session_id)
        with pytest.raises(InfrastructureFault, match="proxy: session_aborted"):
            await call
        assert rig.engine.cancelled == 1


async def test_a_proxy_that_cannot_be_reached_is_a_fault() -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(InfrastructureFault, match="proxy: connection"):
            await PolicyClient("http://127.0.0.1:1/v1", "x", http, timeout=5).complete({})


async def test_an_answer_that_breaks_off_is_a_fault_and_closed() -> None:
    closed = asyncio.Event()

    class BreaksOff(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{"
            raise httpx.ReadError("gone")

        async def aclose(self) -> None:
            closed.set()

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=BreaksOff())

    async with StraightClient(transport=Transport(), timeout=5) as http:
        with pytest.raises(InfrastructureFault, match="proxy: connection"):
            await PolicyClient("http://x/v1", "x", http, timeout=5).complete({})
    assert closed.is_set()


async def test_both_doors_record_the_same_session() -> None:
    rows = []
    for name in ("http", "in process"):
        async with Rig(ProxySettings()) as rig, door(rig, name) as http:
            rig.engine.script.extend([CALL, "done"])
            session = rig.store.start(tools=TOOLS)
            client = PolicyClient(rig.server.base_url, session.api_key, http, timeout=5)
            messages: list[Any] = [{"role": "user", "content": "x"}]
            reply = await client.complete({"messages": messages, "temperature": 0.5})
            messages += [reply, {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "seen"}]
            await client.complete({"messages": messages, "temperature": 0.5})
            (row,) = rig.store.export(session.session_id)
            rows.append([list(values) for values in (row.token_ids, row.loss_mask, row.logprobs, row.versions)])
            assert len(row.turns) == 2 and [call[1].temperature for call in rig.engine.calls] == [0.5, 0.5]
            assert rig.server._server.server_state.total_requests == (2 if name == "http" else 0)
    assert rows[0] == rows[1]


@pytest.mark.parametrize("over_http", [True, False])
async def test_only_agents_of_the_users_own_go_over_http(over_http: bool) -> None:
    async with Rig(ProxySettings()) as rig, episode_transport(rig.app, over_http=over_http) as transport:
        session = rig.store.start()
        client = PolicyClient(rig.server.base_url, session.api_key, httpx.AsyncClient(transport=transport), timeout=5)
        assert (await client.complete({"messages": [{"role": "user", "content": "x"}]}))["content"] == "hello"
        assert rig.server._server.server_state.total_requests == int(over_http)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
async def test_a_server_left_while_it_starts_is_stopped_in_order(after: int, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(ProxySettings())
    starting = asyncio.create_task(rig.server.start())
    for _ in range(1 + after):
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await rig.server.stop()
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not caplog.records, "uvicorn reports a lifespan that was broken off"
