"""Engine, proxy and collector in one background loop: what a trainer's main thread speaks to, synchronously."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import structlog
from httpx_aiohttp import AiohttpTransport
from torch import Tensor

from tau2_lightning.allocation import Allocation
from tau2_lightning.config import RunConfig
from tau2_lightning.config_rules import environment_settings
from tau2_lightning.environment import TaskRef
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.rollout.background import BackgroundLoop
from tau2_lightning.rollout.chat_format import ChatFormat
from tau2_lightning.rollout.collector import Collection, Collector, CollectPlan, Progress
from tau2_lightning.rollout.engine import EnginePool
from tau2_lightning.rollout.engine_server import EngineSettings
from tau2_lightning.rollout.episode import Tau2Workflow
from tau2_lightning.rollout.parity import ParityReport, check_parity
from tau2_lightning.rollout.proxy import create_app
from tau2_lightning.rollout.proxy_server import ProxyServer
from tau2_lightning.rollout.proxy_settings import ProxySettings
from tau2_lightning.rollout.runner import EpisodeRunner
from tau2_lightning.rollout.session_store import SessionSettings, SessionStore
from tau2_lightning.rollout.trajectory import Rollout
from tau2_lightning.rollout.weight_sync import WeightPublisher
from tau2_lightning.rollout.workflow import AgentWorkflow, load_workflow

log = structlog.get_logger(__name__)

STOP_SECONDS = 30.0


def engine_settings(config: RunConfig, policy_path: Path, log_path: Path) -> EngineSettings:
    """The engine's settings for a run that samples from the policy at ``policy_path``."""
    r = config.rollout
    generation = Allocation.parse(config.allocation_mode).generation
    return EngineSettings(
        api_key=r.engine_api_key or secrets.token_urlsafe(24),
        model_path=str(policy_path),
        dtype=config.actor.dtype,
        max_model_len=config.gconfig.max_tokens,
        max_num_seqs=r.max_num_seqs,
        kv_cache_gib=r.kv_cache_gib,
        gpu_memory_utilization=r.gpu_memory_utilization,
        port=r.engine_port,
        tensor_parallel=generation.spec.t if generation else 1,
        data_parallel=generation.spec.d if generation else 1,
        urls=tuple(r.engine_urls),
        seed=config.seed,
        extra_args=tuple(r.engine_args),
        log_path=log_path,
        start_timeout_s=r.engine_start_timeout,
    )


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
        pool = self._pool = EnginePool(engine_settings(c, self.policy_path, self.run_dir / "logs" / "engine.log"))
        self._stack.push_async_callback(pool.stop)
        await pool.start()
        # Beside the engine's boot: what this process needs of its own.
        chat_format = await asyncio.to_thread(ChatFormat.from_pretrained, self.policy_path, r.tool_call_parser)
        # Discount and penalty are the algorithm's to apply, once.
        store = SessionStore(SessionSettings(turn_discount=1.0, invalid_format_penalty=0.0))
        settings = ProxySettings(max_new_tokens=c.gconfig.max_new_tokens, request_timeout=r.request_timeout)
        server = ProxyServer(create_app(store, chat_format, pool, settings), host=r.host, port=r.port)
        await server.start()
        self._stack.push_async_callback(server.stop)
        # aiohttp below httpx: httpx's own pool walks every connection for each request, 128 episodes feel that.
        connections = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        http = await self._stack.enter_async_context(connections)
        client = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=AiohttpTransport(client=http), timeout=r.request_timeout)
        )
        runner = self._runner = EpisodeRunner(
            self._workflow(),
            store,
            base_url=server.base_url,
            http_client=client,
            timeout=r.episode_timeout,
            retries=r.retries,
        )
        self._collector = Collector(
            runner, max_concurrent=r.max_concurrent_rollouts, tools_of=self._tools, seed=c.seed * 1_000_003
        )
        await pool.wait_ready()
        self._publisher = WeightPublisher(pool, backend=r.weight_sync.backend, timeout=r.weight_sync.timeout)
        self._stack.push_async_callback(self._publisher.close)

    def collect(self, tasks: Iterator[TaskRef], plan: CollectPlan) -> Collection:
        """Collect one training batch."""
        limit = self.config.rollout.collect_timeout
        work = self._running.collect(tasks, plan, deadline=limit)
        return self._background.call(work, component="collector", doing="collecting a batch", timeout=limit + 10)

    def evaluate(self, tasks: Sequence[TaskRef], num_trials: int) -> tuple[list[Rollout], Counter[str]]:
        """Play every task ``num_trials`` times."""
        limit = self.config.rollout.collect_timeout
        work = self._running.evaluate(tasks, num_trials, deadline=limit)
        return self._background.call(work, component="collector", doing="validating", timeout=limit + 10)

    def take_retried(self) -> Counter[str]:
        """Faults by ``component:cause`` since the last call, also those that a retry made good."""
        assert self._runner is not None
        faults, self._runner.faults = self._runner.faults, Counter()
        return faults

    def publish(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Bring weights into every engine; no episode may be under way (synchronous training)."""
        assert self._publisher is not None
        self._version = version
        work = self._publisher.publish(version, tensors, mode="wait")
        limit = self.config.rollout.weight_sync.timeout
        self._background.call(work, component="weight sync", doing=f"publishing version {version}", timeout=limit + 10)

    def check_parity(self, rows: Sequence[Sequence[int]], expected: Sequence[Sequence[float]]) -> ParityReport:
        """Compare the engine's log-probs of ``rows`` with the trainer's; raises ParityError."""
        assert self._pool is not None
        tolerance = self.config.rollout.weight_sync.parity_tolerance
        if tolerance is None:
            exact = self.config.actor.dtype == "float32" and self.config.actor.precision == "fp32"
            tolerance = 1e-3 if exact else 0.25
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

    def _workflow(self) -> AgentWorkflow:
        custom = self.config.rollout.workflow
        if custom is not None:
            return load_workflow(custom)
        g = self.config.gconfig
        sampling = {"temperature": g.temperature, "top_p": g.top_p, "top_k": g.top_k}
        return Tau2Workflow(
            self.settings,
            sampling,
            request_timeout=self.config.rollout.request_timeout,
            official_check=self.config.rollout.official_check,
            evidence=self.run_dir / "logs",
        )

    def _tools(self, task: TaskRef) -> Sequence[Any]:
        return blueprint(task.domain, self.settings.solo_mode).tool_schemas(self.settings.add_thinking_tool)
