"""Start-up of the rollouts: engine, proxy, episodes, collectors and weight publisher, each given what it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog
import torch

from tau2_lightning.config.kept import KeptBound
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, UserSettings, load_tasks
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.collect.collector import Collector
from tau2_lightning.rollout.collect.idle import IdleMeter
from tau2_lightning.rollout.collect.online import OnlineCollector
from tau2_lightning.rollout.deadlines import Limits
from tau2_lightning.rollout.engine.meter import EngineMeter
from tau2_lightning.rollout.engine.names import SGLANG
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.episode.data import task_data
from tau2_lightning.rollout.episode.domains import ByDomain
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.episode.workflow import AgentWorkflow, load_workflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.transports import elsewhere

from .engines import chat_format_of, engine_settings, settle_user

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RunningParts:
    """The parts that play episodes and take weights. ``online`` gathers sessions of outside programs in
    ``mode=online``; ``opening`` gives the tokens of a prompt as episodes begin with."""

    pool: EnginePool
    runner: EpisodeRunner
    collector: Collector
    publisher: WeightPublisher
    idle: IdleMeter
    load: EngineMeter
    opening: Callable[[], list[int]]
    online: OnlineCollector | None = None


async def assemble(
    config: RunConfig, policy_path: Path, run_dir: Path, stack: AsyncExitStack, device: torch.device
) -> RunningParts:
    """Start the engine and the proxy for the policy at ``policy_path``; returns when both answer.

    ``device`` is the trainer's, from which weights come. Everything ends with ``stack``, also when this is cancelled
    half-way. Logs go to ``run_dir/logs``.
    """
    r, limits = config.rollout, Limits.of(config)
    # First the parts that can fail on a wrong configuration.
    custom = load_workflow(r.workflow) if r.workflow is not None else None
    environments = {name: environment_settings(view.econfig) for name, view in config.by_domain.items()}
    pool = EnginePool(engine_settings(config, policy_path, run_dir / "logs" / "engine.log"))
    stack.push_async_callback(pool.stop)
    await pool.start()
    # While the engine boots, this process prepares its own parts.
    chat_format = await asyncio.to_thread(chat_format_of, config, policy_path)
    environments = await _with_users(config, environments, stack, run_dir / "logs" / "user_engine.log")
    # Without penalty and discount: the algorithm applies them, once.
    store = SessionStore(SessionSettings(idle_timeout=r.session_timeout))
    settings = ProxySettings.of(config)
    policy = ChatService(store, chat_format, pool, settings)
    server = ProxyServer(create_app(policy), host=r.host, port=r.port)
    stack.push_async_callback(server.stop)  # before its start, which Ctrl-C may interrupt
    await server.start()
    online = None
    if r.mode == "online":
        online = OnlineCollector(store, group_timeout=r.group_timeout)
        _announce(server.base_url, settings.admin_key, run_dir, stack)
    access = await stack.enter_async_context(
        episode_access(policy, server.base_url, over_http=custom is not None, timeout=limits.request)
    )
    runner = EpisodeRunner(
        custom or _built_in_workflow(config, environments, run_dir, pool.settings),
        store,
        access,
        timeout=limits.episode,
        retries=r.retries,
        own=custom is None,
        data_of=partial(_agent_data, config, environments),
        keep_failed=KeptBound.parse(r.keep_rollouts).keeps,
    )

    def tools(task: TaskRef) -> Sequence[Any]:
        environment = environments[task.domain]
        return plan_of(environment).tool_schemas(environment.add_thinking_tool)

    collector = Collector(
        runner,
        max_concurrent=limits.concurrent,
        tools_of=tools,
        seed=config.seed,
        max_fault_fraction=r.max_fault_fraction,
    )
    await pool.wait_ready()
    publisher = _publisher(config, pool, run_dir, device)
    stack.push_async_callback(publisher.close)
    idle = IdleMeter(lambda: any(member.inflight for member in pool.members))
    measuring = asyncio.create_task(idle.run(), name="measuring idle time")
    stack.callback(measuring.cancel)
    load = EngineMeter(pool)
    reading = asyncio.create_task(load.run(), name="reading the engines' load")
    stack.callback(reading.cancel)
    opening = partial(_opening, config, environments, chat_format)
    return RunningParts(pool, runner, collector, publisher, idle, load, opening, online)


def _opening(config: RunConfig, environments: Mapping[str, EnvironmentSettings], chat_format: ChatFormat) -> list[int]:
    domain, environment = next(iter(environments.items()))
    split = config.by_domain[domain].train_dataset.split
    task = load_tasks(domain, split, solo_mode=environment.solo_mode)[0]
    dialogue = Dialogue(task, environment)
    messages = dialogue.opening()
    if messages[-1]["role"] != "user":
        messages.append({"role": "user", "content": "Hello, can you help me?"})
    return chat_format.render(messages, dialogue.tools, **template_kwargs(config.gconfig))


def _agent_data(config: RunConfig, environments: Mapping[str, EnvironmentSettings], task: TaskRef) -> Mapping[str, Any]:
    data = task_data(task, environments[task.domain], config.by_domain[task.domain].econfig)
    if "econfig" in (config.rollout.workflow or {}):
        del data["econfig"]  # the workflow was given one of its own, which this one would take the place of
    return data


async def _with_users(
    config: RunConfig, environments: Mapping[str, EnvironmentSettings], stack: AsyncExitStack, log_path: Path
) -> dict[str, EnvironmentSettings]:
    """``environments`` with settled users (see `settle_user`). Domains share the run's user engine, and what is known
    about a server."""
    settled: dict[tuple[str, str], UserSettings] = {}
    ready = {}
    for name, environment in environments.items():
        user, own_engine = environment.user, config.econfig.user_engine.path is not None
        if user.kind == "llm":
            place = ("", "") if own_engine else (user.base_url, user.llm)
            if place not in settled:
                settled[place] = await settle_user(config.by_domain[name], user, stack, log_path)
            found = settled[place]
            user = replace(user, llm=found.llm, base_url=found.base_url, api_key=found.api_key)
        ready[name] = replace(environment, user=user)
    return ready


def _announce(base_url: str, admin_key: str, run_dir: Path, stack: AsyncExitStack) -> None:
    """Write the proxy's address and key to a file for outside programs; only the run's owner may read it."""
    target = run_dir / "proxy.json"
    target.touch(mode=0o600)
    stack.callback(target.unlink, missing_ok=True)
    target.write_bytes(orjson.dumps({"base_url": base_url, "admin_key": admin_key}))
    log.info("online: open sessions at the proxy", base_url=base_url, key_file=str(target))


def _built_in_workflow(
    config: RunConfig, environments: Mapping[str, EnvironmentSettings], run_dir: Path, engine: EngineSettings
) -> AgentWorkflow:
    r, g = config.rollout, config.gconfig
    # A GPU's kernels round differently in other batches: seeds would cost throughput there and repeat nothing. SGLang
    # takes no seeds on a CPU.
    repeats = engine.on_cpu and engine.backend != SGLANG
    seeded = repeats if r.seeded_sampling is None else r.seeded_sampling
    return ByDomain(
        {
            name: Tau2Workflow(
                environment,
                {"temperature": g.temperature, "top_p": g.top_p, "top_k": g.top_k},
                official_check=r.official_check,
                evidence=run_dir / "logs",
                seeded=seeded,
            )
            for name, environment in environments.items()
        }
    )


def _publisher(config: RunConfig, pool: EnginePool, run_dir: Path, device: torch.device) -> WeightPublisher:
    sync = config.rollout.weight_sync
    spread = any(place.agent for place in pool.settings.places) or (sync.backend == "shm" and elsewhere(pool.settings))
    # Shared memory is of one node; the run's folder is on every node.
    files = WeightFiles(run_dir, run_dir) if spread else None
    return WeightPublisher(
        pool, device=device, backend=sync.backend, sync_mode=sync.mode, timeout=sync.timeout, files=files
    )
