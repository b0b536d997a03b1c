"""A23: no episode is lost when a user endpoint answers 429 with Retry-After to 128 concurrent episodes.

The server's window is 1 second here and 30 seconds in the original case. A window allows 40 calls, so most of the
first 128 are refused.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tau2_lightning.callbacks.progress import playing
from tau2_lightning.environment import (
    Dialogue,
    EnvironmentSettings,
    UserSettings,
    load_tasks,
    use_of_models,
    waits_for_models,
)
from tau2_lightning.environment.model_client import client_for
from tau2_lightning.environment.user_model import user_endpoint
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.collect.collector import Collector
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.episode.workflow import Access, AgentWorkflow
from tau2_lightning.rollout.session.store import SessionStore
from tests.environment.limited_server import limited
from tests.rollout.episode.test_runner import take_a_turn

TASK = load_tasks("telecom", "train")[0]
EPISODES, WINDOW, ALLOWED = 128, 1.0, 40


def settings(url: str, **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings("telecom", user=UserSettings("llm", llm="user-7b", base_url=url, **kwargs))


class OneTurn:
    """An agent that ends the episode after the user's first message."""

    def __init__(self, world: EnvironmentSettings, store: SessionStore) -> None:
        self.world, self.store = world, store

    async def run(self, data, *, base_url, api_key, http_client):
        dialogue = Dialogue(data["task"], self.world, seed=data["seed"])
        await dialogue.start()
        take_a_turn(self.store, api_key)
        dialogue.abort("enough")
        return 1.0


def collector(world: EnvironmentSettings, *, timeout: float, retries: int) -> Collector:
    access = Access("http://x/v1", http_client=cast("Any", None), client=cast("Any", lambda key: key))
    store = SessionStore()
    agent = cast("AgentWorkflow", OneTurn(world, store))
    runner = EpisodeRunner(agent, store, access, timeout=timeout, retries=retries)
    return Collector(runner, max_concurrent=EPISODES)


@pytest.mark.parametrize("header", ["seconds", "date", "nothing"])
async def test_a23_none_of_128_episodes_is_excluded(header: str) -> None:
    async with limited(ALLOWED, WINDOW, header) as (server, url):
        world = settings(url, deadline_s=60.0)
        collecting = collector(world, timeout=60.0, retries=0)
        rollouts, excluded = await collecting.evaluate([TASK], EPISODES, deadline=90.0)
        limit = client_for(user_endpoint(world.user)).limit
    assert not excluded and len(rollouts) == server.served == EPISODES
    assert server.refused > 0, "the server refused nothing, so the test shows nothing"
    assert limit.limit < EPISODES and limit.open == limit.waiting == 0
    # A client that retries at once would be refused hundreds of times.
    assert server.refused <= 2 * EPISODES


async def test_a23_an_episode_is_not_charged_for_its_wait_at_the_door() -> None:
    async with limited(1, 1.5) as (server, url):
        world = settings(url, deadline_s=60.0)
        await Dialogue(TASK, world, seed=0).start()
        began = asyncio.get_running_loop().time()
        rollouts, excluded = await collector(world, timeout=2.5, retries=0).evaluate([TASK], 4, deadline=60.0)
        seconds = asyncio.get_running_loop().time() - began
    assert seconds > 4.0, "no episode waited longer than its timeout, so the test shows nothing"
    assert not excluded and len(rollouts) == 4 and server.refused > 0


async def test_a23_a_permanent_429_ends_by_the_deadline_as_a_fault_of_its_own_name() -> None:
    async with limited(0, 0.0) as (server, url):
        began = asyncio.get_running_loop().time()
        _, excluded = await collector(settings(url, deadline_s=5.0), timeout=60.0, retries=0).evaluate(
            [TASK], 32, deadline=60.0
        )
        seconds = asyncio.get_running_loop().time() - began
    assert excluded == {"user:rate_limited": 32}
    assert seconds < 30.0 and server.refused <= 4 * 32
    assert waits_for_models() == ""


async def test_a23_the_screen_says_what_is_waited_for() -> None:
    async with limited(0, 0.0) as (_, url):
        world = settings(url, deadline_s=1.5)
        starting = [asyncio.create_task(Dialogue(TASK, world, seed=seed).start()) for seed in range(3)]
        await asyncio.sleep(0.6)
        data: Any = SimpleNamespace(
            rollouts=SimpleNamespace(service=SimpleNamespace(progress=Progress("rollout", total=3), waits=""))
        )
        live, at_deadline = playing(data)[2], Progress("rollout", total=3).describe()
        results = await asyncio.gather(*starting, return_exceptions=True)
    assert "waiting for the user model: 429, retry in 1 s" in live.replace("in 0 s", "in 1 s")
    assert "waiting for the user model: 429" in at_deadline
    assert all(isinstance(result, InfrastructureFault) and result.cause == "rate_limited" for result in results)
    assert "waiting" not in playing(data)[2]


async def test_the_use_of_the_user_model_is_counted() -> None:
    before = use_of_models()
    async with limited(2, 0.3) as (server, url):
        await asyncio.gather(*[Dialogue(TASK, settings(url), seed=seed).start() for seed in range(4)])
        now = use_of_models()
    grown = {name: value - before.get(name, 0.0) for name, value in now.items()}
    assert grown["user/requests"] == server.served + server.refused and grown["user/refused"] == server.refused > 0
    assert grown["user/retries"] == server.refused
    assert (grown["user/prompt_tokens"], grown["user/completion_tokens"]) == (20, 8)
    assert grown["user/waited_s"] > 0.0


async def test_other_failures_are_still_tried_a_few_times_only() -> None:
    """Negative control: the client waits for a rate limit, but not for a broken server."""
    dialogue = Dialogue(TASK, settings("http://127.0.0.1:9/v1", max_retries=1, deadline_s=60.0), seed=1)
    with pytest.raises(InfrastructureFault, match="user: connection"):
        await dialogue.start()
