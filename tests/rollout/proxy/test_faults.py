"""The proxy's server ends while episodes run: they finish or fail with a cause, and no session or task remains."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.proxy import server as proxy_server
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import Rig, until

REQUEST = EpisodeRequest(task=None, task_id="t", group_id="g", sample=0, seed=0)


class TwoTurns:
    """An agent that uses only the OpenAI base URL and key."""

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
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(Rig(ProxySettings(request_timeout=20)))
        url = rig.server.base_url
        access = await stack.enter_async_context(episode_access(rig.service, url, over_http=True, timeout=20))
        runner = EpisodeRunner(TwoTurns(), rig.store, access, timeout=60, retries=2)
        first, second = asyncio.Event(), asyncio.Event()
        rig.engine.hold = first
        episodes = [asyncio.create_task(runner.run(REQUEST)) for _ in range(4)]
        await until(lambda: rig.engine.held == 4)
        rig.engine.hold = second
        first.set()
        await until(lambda: rig.engine.held == len(rig.engine.calls) == 4)  # the second turns are in progress
        breaking(rig, how)
        await until(lambda: rig.server.restarts == 1, 15)
        second.set()
        rollouts = await asyncio.gather(*episodes)
        assert [len(row.turns) for rollout in rollouts for row in rollout.trajectories] == [2] * 4
        assert set(runner.faults) == {"proxy:connection"} and len(rig.store) == 0
        assert (rig.server.restarts, rig.server.base_url) == (1, url)


async def test_a_proxy_that_keeps_breaking_is_a_fault_with_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_server, "MAX_RESTARTS", 0)
    rig = await Rig(ProxySettings()).__aenter__()
    async with episode_access(rig.service, rig.server.base_url, over_http=True, timeout=5) as access:
        runner = EpisodeRunner(TwoTurns(), rig.store, access, timeout=20, retries=0)
        breaking(rig, "exits")
        assert rig.server._task is not None
        with pytest.raises(InfrastructureFault, match="its server ended 1 times"):
            await asyncio.wait_for(asyncio.shield(rig.server._task), 10)
        with pytest.raises(InfrastructureFault, match="proxy: connection"):
            await runner.run(REQUEST)
        await rig.http.aclose()
        assert len(rig.store) == 0


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
    assert not caplog.records, "uvicorn logged an interrupted lifespan"
