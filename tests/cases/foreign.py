"""A user-written agent against a running proxy, episode runner and collector, with a scripted engine."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai

from tau2_lightning.environment import TaskRef
from tau2_lightning.rollout.collect.collector import Collection, Collector, CollectPlan
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import Rig

USER: list[Any] = [{"role": "user", "content": "Say something."}]
REQUEST = EpisodeRequest(task=None, task_id="t", group_id="g", sample=0, seed=0)
Play = Callable[[openai.AsyncOpenAI, Mapping[str, Any]], Awaitable[Any]]


class Agent:
    """An agent that makes an OpenAI client from URL and key and runs ``play`` with it, without retries."""

    def __init__(self, play: Play) -> None:
        self.play = play

    async def run(self, data: Mapping[str, Any], *, base_url: str, api_key: str, http_client: Any, **_: Any) -> Any:
        client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)
        return await self.play(client, data)


async def ask(client: openai.AsyncOpenAI, messages: list[Any] = USER, **more: Any) -> Any:
    """Request one completion."""
    return await client.chat.completions.create(model="policy", messages=messages, **more)


@dataclass(frozen=True)
class Stage:
    rig: Rig
    runner: EpisodeRunner
    collector: Collector

    async def collect(self, n_groups: int = 1, n_samples: int = 2, **options: Any) -> Collection:
        plan = CollectPlan(n_groups, n_samples, filter_groups=False, **options)
        return await self.collector.collect(tasks(), plan, deadline=60)


def tasks() -> Iterator[TaskRef]:
    """An endless sequence of tasks."""
    return (TaskRef("telecom", "train", f"task-{number}", False, "") for number in itertools.count())


@asynccontextmanager
async def stage(
    play: Play, *, retries: int = 0, timeout: float = 20.0, max_fault_fraction: float = 1.0, **settings: Any
) -> AsyncIterator[Stage]:
    """Start all parts from the agent to the engine, connected over HTTP."""
    async with (
        Rig(ProxySettings(**settings)) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=True, timeout=20) as access,
    ):
        runner = EpisodeRunner(Agent(play), rig.store, access, timeout=timeout, retries=retries)
        yield Stage(rig, runner, Collector(runner, max_concurrent=16, max_fault_fraction=max_fault_fraction))
        assert len(rig.store) == 0, "an episode did not remove its session"
