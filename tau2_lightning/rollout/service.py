"""Engine, proxy and collector in one background loop: what a trainer's main thread speaks to, synchronously."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import httpx
import orjson
import structlog
from httpx_aiohttp import AiohttpTransport
from starlette.types import ASGIApp
from torch import Tensor

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import TaskRef
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.collect.collector import Collection, Collector, CollectPlan, Progress
from tau2_lightning.rollout.collect.idle import IdleMeter
from tau2_lightning.rollout.collect.online import OnlineCollector
from tau2_lightning.rollout.collect.overlapped import AsyncCollector
from tau2_lightning.rollout.engine.pool import EnginePool, PauseMode
from tau2_lightning.rollout.episode.client import StraightClient
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.episode.workflow import AgentWorkflow, load_workflow
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.parity import ParityReport, check_parity, default_tolerance
from tau2_lightning.rollout.weights.publisher import SyncReport, WeightPublisher
from tau2_lightning.trajectory import Rollout

from .background import BackgroundLoop
from .serving import engine_settings, settle_user

log = structlog.get_logger(__name__)
T = TypeVar("T")

STOP_SECONDS = 30.0


@asynccontextmanager
async def episode_transport(app: ASGIApp, *, over_http: bool) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """What carries the requests of all episodes to the proxy.

    The built-in episodes live in its process and call ``app`` where it is: every layer of it, without a socket and the
    writing and parsing of HTTP on both ends. Agents of the user's own go ``over_http``: their clients may stream,
    leave early, or set timeouts, none of which the other way knows.
    """
    if not over_http:
        yield httpx.ASGITransport(app=app)
        return
    # aiohttp below httpx: httpx's own pool walks every connection for each request, 128 episodes feel that.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as connections:
        yield AiohttpTransport(client=connections)


class RolloutService:
    """Plays episodes of ``config``'s domain with the policy at ``policy_path``.

    ``start`` launches the engine (a child process with its log in ``run_dir/logs``) and the proxy; ``close`` ends
    both. Every call waits with a deadline that names what is stuck.
    """

    def __init__(self, config: RunConfig, policy_path: Path, *, run_dir: Path) -> None:
        self.config, self.policy_path, self.run_dir = config, policy_path, run_dir
        self.settings = environment_settings(config)
        self._background = BackgroundLoop()
        self._stack = AsyncExitStack()
        self._collector: Collector | None = None
        self._ahead: AsyncCollector | None = None  # collects while training runs
        self._online: OnlineCollector | None = None  # sessions of outside programs, in the place of our episodes
        self._idle: IdleMeter | None = None
        self.engine_idle = 0.0
        self._runner: EpisodeRunner | None = None
        self._pool: EnginePool | None = None
        self._publisher: WeightPublisher | None = None
        self._version = 0

    @property
    def progress(self) -> Progress:
        """What the collector is doing; read from any thread."""
        return self._collector.progress if self._collector else Progress(phase="engine start")

    def start(self) -> None:
        """Launch the engine and the proxy; returns when both answer."""
        limit = self.config.rollout.engine_start_timeout
        self._background.call(self._start(), component="engine", doing="starting", timeout=limit + STOP_SECONDS)

    async def _start(self) -> None:
        r, c = self.config.rollout, self.config
        custom = load_workflow(r.workflow) if r.workflow is not None else None  # first: it may be misspelt
        pool = self._pool = EnginePool(engine_settings(c, self.policy_path, self.run_dir / "logs" / "engine.log"))
        self._stack.push_async_callback(pool.stop)
        await pool.start()
        # Beside the engine's boot: what this process needs of its own.
        chat_format = await asyncio.to_thread(ChatFormat.from_pretrained, self.policy_path, r.tool_call_parser)
        user = await settle_user(c, self.settings.user, self._stack, self.run_dir / "logs" / "user_engine.log")
        self.settings = replace(self.settings, user=user)
        # Discount and penalty are the algorithm's to apply, once.
        store = SessionStore(SessionSettings(idle_timeout=r.session_timeout))
        settings = ProxySettings.of(c)
        app = create_app(store, chat_format, pool, settings)
        server = ProxyServer(app, host=r.host, port=r.port)
        self._stack.push_async_callback(server.stop)  # also when Ctrl-C comes while it starts
        await server.start()
        if r.mode == "online":
            self._online = OnlineCollector(store, group_timeout=r.group_timeout)
            self._announce(server.base_url, settings.admin_key)
        transport = await self._stack.enter_async_context(episode_transport(app, over_http=custom is not None))
        kind = StraightClient if custom is None else httpx.AsyncClient
        client = await self._stack.enter_async_context(kind(transport=transport, timeout=r.request_timeout))
        runner = self._runner = EpisodeRunner(
            custom or self._built_in_workflow(),
            store,
            base_url=server.base_url,
            http_client=client,
            timeout=r.episode_timeout,
            retries=r.retries,
        )
        self._collector = Collector(runner, max_concurrent=r.max_concurrent_rollouts, tools_of=self._tools, seed=c.seed)
        await pool.wait_ready()
        spread = any(place.agent for place in pool.settings.places)
        self._publisher = WeightPublisher(
            pool,
            backend=r.weight_sync.backend,
            timeout=r.weight_sync.timeout,
            # Shared memory ends at the node; the run's folder is on every node.
            files=WeightFiles(self.run_dir, self.run_dir) if spread else None,
        )
        self._stack.push_async_callback(self._publisher.close)
        self._idle = IdleMeter(lambda: any(member.inflight for member in pool.members))
        measuring = asyncio.create_task(self._idle.run(), name="measuring idle time")
        self._stack.callback(measuring.cancel)

    def _announce(self, base_url: str, admin_key: str) -> None:
        """Tell outside programs where to go; the key is for the owner of the run alone."""
        target = self.run_dir / "proxy.json"
        target.touch(mode=0o600)
        self._stack.callback(target.unlink, missing_ok=True)
        target.write_bytes(orjson.dumps({"base_url": base_url, "admin_key": admin_key}))
        log.info("online: open sessions at the proxy", base_url=base_url, key_file=str(target))

    def collect(self, tasks: Iterator[TaskRef], plan: CollectPlan) -> Collection:
        """Collect one training batch. Afterwards ``engine_idle`` is the engine's idle fraction since the one before.

        With ``rollout.max_head_offpolicyness`` the next batches are collected from ``tasks`` from now on, until
        ``end_collection``; what fails meanwhile is raised by the next call.
        """
        limit = self.config.rollout.collect_timeout
        work = self._collect(tasks, plan, limit)
        return self._background.call(work, component="collector", doing="collecting a batch", timeout=limit + 10)

    async def _collect(self, tasks: Iterator[TaskRef], plan: CollectPlan, limit: float) -> Collection:
        assert self._idle is not None
        r = self.config.rollout
        if self._online is not None:
            collection = await self._online.collect(plan, deadline=limit)
        elif not r.max_head_offpolicyness:
            collection = await self._running.collect(tasks, plan, deadline=limit)
        else:
            if self._ahead is None:
                self._ahead = AsyncCollector(
                    self._running,
                    tasks,
                    plan,
                    max_head_offpolicyness=r.max_head_offpolicyness,
                    stragglers=r.stragglers,
                    version=self._version,
                )
                self._ahead.start()
                self._stack.push_async_callback(self._ahead.close)
            collection = await self._ahead.take(deadline=limit)
        self.engine_idle = self._idle.take()
        return collection

    def while_collecting(self, read: Callable[[list[TaskRef]], T]) -> T:
        """``read(unfinished tasks)`` while nobody draws tasks. Unfinished: drawn for a batch that was not given out."""

        async def in_the_loop() -> T:
            return read(self._ahead.unfinished if self._ahead else [])

        return self._background.call(
            in_the_loop(), component="collector", doing="listing its tasks", timeout=STOP_SECONDS
        )

    def end_collection(self) -> list[TaskRef]:
        """End asynchronous collection; returns the unfinished tasks. Does nothing when there is none."""

        async def end() -> list[TaskRef]:
            ahead, self._ahead = self._ahead, None
            if ahead is None:
                return []
            await ahead.close()
            return ahead.unfinished

        return self._background.call(end(), component="collector", doing="ending its episodes", timeout=STOP_SECONDS)

    def evaluate(
        self, tasks: Sequence[TaskRef], num_trials: int, *, greedy: bool = False
    ) -> tuple[list[Rollout], Counter[str]]:
        """Play every task ``num_trials`` times. Asynchronous collection starts no group meanwhile.

        Sampled as ``gconfig`` says, or with ``greedy`` always the likeliest token.
        """
        limit = self.config.rollout.collect_timeout
        work = self._evaluate(tasks, num_trials, limit, {"temperature": 0.0} if greedy else {})
        return self._background.call(work, component="collector", doing="validating", timeout=limit + 10)

    async def _evaluate(
        self, tasks: Sequence[TaskRef], num_trials: int, limit: float, sampling: Mapping[str, Any]
    ) -> tuple[list[Rollout], Counter[str]]:
        # Held rather than beside it: a validation should queue behind few training episodes, and measure little of
        # their load. Those under way end in their own time and make room, so nobody can wait for each other.
        with self._ahead.held() if self._ahead else nullcontext():
            return await self._running.evaluate(tasks, num_trials, deadline=limit, sampling=sampling)

    def take_retried(self) -> Counter[str]:
        """Faults by ``component:cause`` since the last call, also those that a retry made good."""
        assert self._runner is not None
        faults, self._runner.faults = self._runner.faults, Counter()
        return faults

    def publish(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> SyncReport:
        """Bring weights into every engine. Episodes under way (asynchronous collection) go on with them."""
        return self._publish(version, lambda publisher, mode: publisher.publish(version, tensors, mode=mode))

    def publish_adapter(self, version: int, folder: Path) -> SyncReport:
        """Bring a LoRA adapter (PEFT's format) into every engine, on top of the weights they serve. Like ``publish``.

        The folder must stay until the next publication: engines that restart take it up again.
        """
        return self._publish(version, lambda publisher, mode: publisher.publish_adapter(version, folder, mode=mode))

    def _publish(
        self, version: int, how: Callable[[WeightPublisher, PauseMode], Coroutine[Any, Any, SyncReport]]
    ) -> SyncReport:
        self._version = version
        limit = self.config.rollout.weight_sync.timeout
        work, doing = self._published(version, how), f"publishing version {version}"
        return self._background.call(work, component="weight sync", doing=doing, timeout=limit + 10)

    async def _published(
        self, version: int, how: Callable[[WeightPublisher, PauseMode], Coroutine[Any, Any, SyncReport]]
    ) -> SyncReport:
        assert self._publisher is not None
        report = await how(self._publisher, "keep" if self._ahead else "wait")
        if self._ahead is not None and version != self._ahead.version:
            self._ahead.advance(version)
        return report

    def check_parity(self, rows: Sequence[Sequence[int]], expected: Sequence[Sequence[float]]) -> ParityReport:
        """Compare the engine's log-probs of ``rows`` with the trainer's; raises ParityError."""
        assert self._pool is not None
        tolerance = self.config.rollout.weight_sync.parity_tolerance
        if tolerance is None:
            actor = self.config.actor
            tolerance = default_tolerance(actor.dtype, actor.precision, on_cpu=self._pool.settings.on_cpu)
        limit = self.config.rollout.weight_sync.timeout
        work = check_parity(self._pool, rows, expected, tolerance=tolerance, deadline=limit, version=self._version)
        return self._background.call(work, component="engine", doing="scoring for the parity guard", timeout=limit + 10)

    def close(self) -> None:
        """End proxy, engine and loop. Safe to call twice."""
        if self._background.loop.is_closed():
            return
        try:
            stop = self._stack.aclose()
            self._background.call(stop, component="engine", doing="stopping", timeout=STOP_SECONDS)
        finally:
            self._background.close()

    @property
    def _running(self) -> Collector:
        assert self._collector is not None, "start() has not run"
        return self._collector

    def _built_in_workflow(self) -> AgentWorkflow:
        g = self.config.gconfig
        sampling = {"temperature": g.temperature, "top_p": g.top_p, "top_k": g.top_k}
        return Tau2Workflow(
            self.settings,
            sampling,
            request_timeout=self.config.rollout.request_timeout,
            official_check=self.config.rollout.official_check,
            evidence=self.run_dir / "logs",
            seeded=self._seeded,
        )

    @property
    def _seeded(self) -> bool:
        assert self._pool is not None
        wanted = self.config.rollout.seeded_sampling
        # A GPU's kernels give other bits in other batches, so that seeds would cost throughput and repeat nothing.
        return self._pool.settings.on_cpu if wanted is None else wanted

    def _tools(self, task: TaskRef) -> Sequence[Any]:
        return blueprint(task.domain, self.settings.solo_mode).tool_schemas(self.settings.add_thinking_tool)
