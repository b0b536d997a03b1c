"""Measures generated tokens per second through the proxy and tau2, over the same prompts given to vLLM directly.

A tiny policy, built here and almost untrained, plays telecom dialogues with a scripted user, ``--concurrent`` at a
time, with a real vLLM server. Four ways alternate in one run, each with an empty prefix cache:

- ``tau2``: episodes as the main job plays them: tau2, the agent's client, the proxy in the same process, the engine.
- ``proxy``: the requests of those episodes again, by the same client to the same proxy, each after the answer to the
  previous one. Only the environment is left out.
- ``http``: as ``proxy``, but over HTTP, as an agent in another process sends them.
- ``direct``: the token prompts that the proxy made of these requests, given to vLLM by the engine client in the same
  order, with the same concurrency, sampling parameters and seeds. No client can do less work.

Seeds make all ways sample the same tokens. The program counts the tokens that arrive.

    python benchmarks/proxy_engine.py [--rounds 16] [--episodes 64] [--concurrent 32]

The last line is JSON: ``ratios`` (``engine_tokens``: proxy over direct; ``engine_tokens_with_environment``: tau2 over
direct; ``engine_tokens_over_http``: http over direct) and their ``aims``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import uvloop

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.generation import Engine, Generation, SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engines import engine_settings
from tau2_lightning.rollout.episode.client import PolicyClient
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.episode.seeds import derived_seed
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.episode.workflow import Access
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.run.compose import load_config
from tau2_lightning.warm_start.make import warm_start_policy

AIMS = {"engine_tokens": 0.9}
WORDS = ["warm_start.demonstrations=20", "warm_start.steps=2", "gconfig.max_new_tokens=24"]
# The scripted user answers any message, so that dialogues of an untrained policy have several turns.
SETTINGS = EnvironmentSettings("telecom", max_steps=10, policy="none", user=UserSettings("scripted"))
DEADLINE = 120.0


class Recorder:
    """An engine client that records the requests of each session and the number of tokens that arrive."""

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        self.calls: dict[str, list[tuple[list[int], SamplingParams]]] = defaultdict(list)
        self.tokens = 0

    @property
    def max_model_len(self) -> int:
        return self.pool.max_model_len

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        self.calls[session or ""].append((list(token_ids), sampling))
        generation = await self.pool.generate(token_ids, sampling, session=session, deadline=deadline)
        self.tokens += len(generation.token_ids)
        return generation


class RecordingWorkflow(Tau2Workflow):
    """Records the requests of every episode in ``bodies``."""

    bodies: dict[Dialogue, list[Mapping[str, Any]]]

    async def _complete(self, client: Any, dialogue: Dialogue, sampling: Mapping[str, Any]) -> dict[str, Any]:
        bodies = self.bodies.setdefault(dialogue, [])
        return await super()._complete(cast("PolicyClient", Recording(client, bodies)), dialogue, sampling)


class Recording:
    """A client that records its requests."""

    def __init__(self, client: PolicyClient, bodies: list[Mapping[str, Any]]) -> None:
        self._client, self._bodies = client, bodies

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._bodies.append(body)
        return await self._client.complete(body)


class Case:
    """Engine, proxy and episodes."""

    def __init__(self, episodes: int, concurrent: int, stack: AsyncExitStack, folder: Path) -> None:
        self.config = load_config([*WORDS, f"cache_dir={folder}", f"output_dir={folder}"])
        self.policy = warm_start_policy(self.config, folder / "logs")
        self.episodes, self.gate = episodes, asyncio.Semaphore(concurrent)
        self.stack, self.folder = stack, folder
        self.tools = blueprint("telecom", SETTINGS.solo_mode).tool_schemas(False)
        g = self.config.gconfig
        self.sampling = {"temperature": g.temperature, "top_p": g.top_p, "top_k": g.top_k}

    async def start(self) -> None:
        await self.start_engine()
        self.engine = Recorder(self.pool)
        await self.serve(cast("Engine", self.engine))
        workflow = RecordingWorkflow(SETTINGS, self.sampling)
        object.__setattr__(workflow, "bodies", {})
        self.workflow = workflow

    async def start_engine(self) -> None:
        """Start the real engine."""
        self.pool = await self.stack.enter_async_context(
            EnginePool(engine_settings(self.config, self.policy, self.folder / "engine.log"))
        )

    async def serve(self, engine: Engine) -> None:
        """Start the proxy in front of ``engine``."""
        self.store = SessionStore()
        chat_format = ChatFormat.from_pretrained(self.policy)
        service = ChatService(self.store, chat_format, engine, ProxySettings.of(self.config))
        self.server = ProxyServer(create_app(service))
        await self.server.start()
        self.stack.push_async_callback(self.server.stop)
        self.inside, self.http = [
            await self.stack.enter_async_context(
                episode_access(service, self.server.base_url, over_http=over_http, timeout=DEADLINE)
            )
            for over_http in (False, True)
        ]

    async def tau2(self) -> None:
        """Play the episodes."""
        self.workflow.bodies.clear()
        runner = EpisodeRunner(
            self.workflow,
            self.store,
            self.inside,
            timeout=DEADLINE,
            retries=0,
        )
        tasks = load_tasks("telecom", "train")
        await self.all_of(
            runner.run(
                EpisodeRequest(
                    task=(task := tasks[number // 8 % len(tasks)]), task_id=task.task_id, group_id=str(number // 8),
                    sample=number, seed=derived_seed(1, number), tools=self.tools,
                )
            )
            for number in range(self.episodes)
        )  # fmt: skip

    async def proxied(self, access: Access) -> None:
        """Send the recorded requests again."""

        async def session(bodies: Sequence[Mapping[str, Any]]) -> None:
            opened = self.store.start(tools=self.tools)
            client = access.client(opened.api_key)
            for body in bodies:
                await client.complete(body)
            self.store.export(opened.session_id)
            self.store.end(opened.session_id)

        await self.all_of(session(bodies) for bodies in list(self.workflow.bodies.values()))

    async def direct(self, calls: Sequence[Sequence[tuple[list[int], SamplingParams]]]) -> None:
        """Hand the prompts to vLLM."""
        client = self.pool.members[0].client

        async def chain(steps: Sequence[tuple[list[int], SamplingParams]]) -> None:
            for prompt, sampling in steps:
                generation = await client.generate(prompt, sampling)
                self.engine.tokens += len(generation.token_ids)

        await self.all_of(chain(steps) for steps in calls)

    async def all_of(self, work: Any) -> None:
        async def gated(one: Coroutine[Any, Any, Any]) -> None:
            async with self.gate:
                await one

        await asyncio.gather(*map(gated, work))

    async def timed(self, work: Coroutine[Any, Any, None]) -> float:
        """Return generated tokens per second."""
        for member in self.pool.members:
            await member.client.reset_prefix_cache()
        self.engine.tokens = 0
        began = time.perf_counter()
        await work
        return self.engine.tokens / (time.perf_counter() - began)


async def measure(rounds: int = 16, episodes: int = 64, concurrent: int = 32) -> dict[str, float]:
    """Return ``ratios``: medians over rounds of ratios within one round, because the machine's speed drifts."""
    with tempfile.TemporaryDirectory(prefix="tau2-lightning-bench-") as folder:
        async with AsyncExitStack() as stack:
            case = Case(episodes, concurrent, stack, Path(folder))
            await case.start()
            await case.tau2()  # records the requests
            case.engine.calls.clear()
            await case.proxied(case.http)
            calls = list(case.engine.calls.values())
            ways: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                "tau2": case.tau2,
                "http": lambda: case.proxied(case.http),
                "proxy": lambda: case.proxied(case.inside),
                "direct": lambda: case.direct(calls),
            }
            for way in ways.values():
                await case.timed(way())  # warm-up
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds):
                order = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]  # each way comes first in turn
                for name in order:
                    rates[name].append(await case.timed(ways[name]()))
                line = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
                print(f"round {number + 1}: {line} tokens/s, {sum(map(len, calls))} calls", flush=True)

    def over_direct(name: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rates[name], rates["direct"], strict=True)), 3)

    return {
        "engine_tokens": over_direct("proxy"),
        "engine_tokens_with_environment": over_direct("tau2"),
        "engine_tokens_over_http": over_direct("http"),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--concurrent", type=int, default=32)
    ratios = uvloop.run(measure(**vars(parser.parse_args())))
    print(json.dumps({"ratios": ratios, "aims": AIMS}))


if __name__ == "__main__":
    main()
