"""Rollouts for a trainer: engine, proxy and collectors in a background loop, with calls that block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import TaskRef
from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.collect.collector import Collection, CollectPlan
from tau2_lightning.rollout.collect.concurrently import END_SECONDS
from tau2_lightning.rollout.collect.overlapped import AsyncCollector
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.rollout.collect.validation import Part, PlayedPart
from tau2_lightning.rollout.engine.client import PauseMode
from tau2_lightning.rollout.engine.sleep import SLEEP_SECONDS, put_to_sleep
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.on_device import CPU
from tau2_lightning.rollout.weights.parity import ParityReport, Tolerance, check_parity, default_tolerance
from tau2_lightning.rollout.weights.sync_round import SyncReport

from .assembly import RunningParts, assemble
from .background import BackgroundLoop
from .deadlines import Limits, training_episodes

T = TypeVar("T")

STOP_SECONDS = 30.0
BLOCKED_SECONDS = 10.0
BLOCKED = "a tool of the environment, or the code of an agent of yours, that waits without await"
# Beyond the deadline of the work itself, whose error is more precise, and which may have to end episodes first.
GRACE_SECONDS = END_SECONDS + 10.0


class RolloutService:
    """Plays episodes of the configured domain with the policy at ``policy_path``, and takes new weights for it.

    ``start`` launches the engine (a child process with its log in ``run_dir/logs``) and the proxy; ``close`` ends
    both. ``device`` is the trainer's, from which weights come. Every call blocks, and has a deadline; its
    DeadlineExceeded names the part that is stuck. ``engine_idle`` is the fraction of time in which the engine had no
    request, between the last two calls of ``collect``, and ``engine_load`` the engines' load in that time
    (`engine.statistics.over_engines`).
    """

    def __init__(self, config: RunConfig, policy_path: Path, *, run_dir: Path, device: torch.device = CPU) -> None:
        self.config, self.policy_path, self.run_dir, self.device = config, policy_path, run_dir, device
        self.engine_idle = 0.0
        self.engine_load: dict[str, float] = {}
        self.limits = Limits.of(config)
        self._background = BackgroundLoop()
        self._stack = AsyncExitStack()
        self._running: RunningParts | None = None
        self._ahead: AsyncCollector | None = None  # collects while training runs
        self._version = 0

    # ---------------------------------------------------------------------------------------------- start and end

    def start(self) -> None:
        """Launch the engine and the proxy; returns when both answer."""
        limit = self.config.rollout.engine_start_timeout + STOP_SECONDS
        work = assemble(self.config, self.policy_path, self.run_dir, self._stack, self.device)
        self._running = self._background.call(work, component="engine", doing="starting", timeout=limit)

    def close(self) -> None:
        """End the proxy, the engine and the loop. Safe to call twice."""
        if self._background.loop.is_closed():
            return
        try:
            stop = self._stack.aclose()
            self._background.call(stop, component="engine", doing="stopping", timeout=STOP_SECONDS)
        finally:
            self._background.close()

    @property
    def progress(self) -> Progress:
        """The progress of the collector; may be read from any thread."""
        return self._running.collector.progress if self._running else Progress(phase="engine start")

    @property
    def waits(self) -> str:
        """What engines are waited for, since when and why, in words; empty while all serve. For any thread."""
        return self._running.pool.waits() if self._running else ""

    def whereabouts(self, count: int = 8) -> list[str]:
        """The oldest ``count`` running episodes with what each waits for, the engines that are waited for, and whether
        the loop that plays them is blocked; one line for each. For any thread."""
        if self._running is None:
            return []
        playing = tuple(self._running.runner.playing)  # in one step: the loop's thread changes it
        oldest = sorted(playing, key=lambda one: one.since)[:count]
        blocked = self._background.blocked_for
        lines = (
            [f"the loop of the episodes is blocked for {blocked:.0f} s: {BLOCKED}"] if blocked > BLOCKED_SECONDS else []
        )
        return [*lines, self.progress.describe(), *filter(None, [self.waits]), *map(str, oldest)]

    # --------------------------------------------------------------------------------------------------- episodes

    def collect(self, tasks: Iterator[TaskRef], plan: CollectPlan) -> Collection:
        """Collect one training batch.

        With ``rollout.max_head_offpolicyness`` above 0, the next batches are collected from ``tasks`` in the background
        from now on, until ``end_collection``; the next call raises errors of that collection.
        """
        limit = self.limits.batch(max(plan.episodes, training_episodes(self.config)))
        work = self._collect(tasks, plan, limit)
        return self._background.call(
            work, component="collector", doing="collecting a batch", timeout=limit + GRACE_SECONDS
        )

    def while_collecting(self, read: Callable[[list[TaskRef]], T]) -> T:
        """``read(unfinished tasks)`` at a moment when no task is drawn.

        Unfinished tasks were drawn for groups that are in no batch yet, nor in what was left out of one.
        """

        async def in_the_loop() -> T:
            return read(self._ahead.unfinished if self._ahead else [])

        doing = "listing its tasks"
        try:
            return self._background.call(in_the_loop(), component="collector", doing=doing, timeout=STOP_SECONDS)
        except DeadlineExceeded:
            # The loop is blocked, so nothing changes there; a checkpoint must be written all the same.
            return read(self._ahead.unfinished if self._ahead else [])

    def end_collection(self) -> list[TaskRef]:
        """End the background collection; returns the unfinished tasks. Does nothing when there is none."""

        async def end() -> list[TaskRef]:
            ahead, self._ahead = self._ahead, None
            if ahead is None:
                return []
            await ahead.close()
            return ahead.unfinished

        return self._background.call(end(), component="collector", doing="ending its episodes", timeout=STOP_SECONDS)

    def evaluate(self, parts: Sequence[Part]) -> list[PlayedPart]:
        """Play the parts of a validation at the same time, one for each domain; returns what came of each, in order.

        Tokens are sampled as in ``gconfig``, except for the fields of `Part.sampling`. The background collection starts
        no group meanwhile. A failure ends its own part only, and is returned with it (`PlayedPart.failure`).
        """
        whole, last = self.limits.validation([(part.timeout, part.episodes) for part in parts])
        work = self._evaluate(parts, whole)
        return self._background.call(work, component="collector", doing="validating", timeout=last + GRACE_SECONDS)

    def sleep(self) -> None:
        """Put engines that share GPUs with the trainer to sleep, until the next publication. See `engine.sleep`."""
        work, limit = put_to_sleep(self._parts.pool), SLEEP_SECONDS + GRACE_SECONDS
        self._background.call(work, component="engine", doing="putting it to sleep", timeout=limit)

    def take_retried(self) -> Counter[str]:
        """Faults by ``component:cause`` since the last call, including those that a retry corrected."""
        runner = self._parts.runner
        faults, runner.faults = runner.faults, Counter()
        return faults

    def take_failed(self, purpose: str, groups: Container[str] | None = None) -> list[FailedAttempt]:
        """The failed attempts at ``train`` or ``validate`` episodes since the last call, of ``groups`` (ids) only where
        these are given. Others stay."""

        def asked(one: FailedAttempt) -> bool:
            return one.purpose == purpose and (groups is None or one.group_id in groups)

        failed, late = self._parts.runner.failed, self._parts.collector.late
        taken = [kept.popleft() for kept in (failed, late) for _ in range(len(kept))]
        failed.extend(one for one in taken if not asked(one))
        return [one for one in taken if asked(one)]

    # ---------------------------------------------------------------------------------------------------- weights

    def publish(self, version: int, buckets: Iterator[list[tuple[str, Tensor]]]) -> SyncReport:
        """Serve new weights as ``version`` in every engine; running episodes continue with them.

        ``buckets`` are lists of full tensors under Hugging Face names, taken one by one, each once and in order.
        """
        return self._publish(version, self._parts.publisher.publish(version, buckets, mode=self._pause_mode))

    def publish_adapter(self, version: int, folder: Path) -> SyncReport:
        """Serve the LoRA adapter in ``folder`` (PEFT's format) on top of the current weights; otherwise as ``publish``.

        The folder must stay until the next publication: engines that restart load it again.
        """
        return self._publish(version, self._parts.publisher.publish_adapter(version, folder, mode=self._pause_mode))

    def opening(self) -> list[int]:
        """The tokens of a prompt as episodes begin with: the policy text, the tools, and a user's first words."""
        return self._parts.opening()

    def check_parity(self, guard: GuardRows, expected: Sequence[Sequence[float]]) -> ParityReport:
        """Compare the engine's log-probs of ``guard`` with the trainer's; raises ParityError (see `check_parity`)."""
        pool, sync, actor = self._parts.pool, self.config.rollout.weight_sync, self.config.actor
        if sync.parity_tolerance is None:
            tolerance = default_tolerance(actor.dtype, actor.precision, on_cpu=pool.settings.on_cpu)
        else:
            tolerance = Tolerance.of(sync.parity_tolerance)
        tokens = sum(map(len, guard.rows))
        seconds = self.limits.scoring(tokens, least=sync.timeout)
        work = check_parity(
            pool,
            guard.rows,
            expected,
            positions=guard.positions,
            tolerance=tolerance,
            deadline=seconds,
            version=self._version,
        )
        doing = f"scoring {tokens:,} tokens for the parity guard"
        return self._background.call(work, component="engine", doing=doing, timeout=seconds + GRACE_SECONDS)

    # -------------------------------------------------------------------------------------------- inside the loop

    async def _collect(self, tasks: Iterator[TaskRef], plan: CollectPlan, limit: float) -> Collection:
        parts, bound = self._parts, self.config.rollout.max_head_offpolicyness
        if parts.online is not None:
            collection = await parts.online.collect(plan, deadline=limit)
        elif not bound:
            collection = await parts.collector.collect(tasks, plan, deadline=limit)
        else:
            if self._ahead is None:
                self._ahead = self._collecting_ahead(tasks, plan, bound)
            collection = await self._ahead.take(deadline=limit)
        self.engine_idle, self.engine_load = parts.idle.take(), parts.load.take()
        return collection

    def _collecting_ahead(self, tasks: Iterator[TaskRef], plan: CollectPlan, bound: int) -> AsyncCollector:
        ahead = AsyncCollector(
            self._parts.collector,
            tasks,
            plan,
            max_head_offpolicyness=bound,
            stragglers=self.config.rollout.stragglers,
            version=self._version,
            group_seconds=self.limits.batch(training_episodes(self.config)),
        )
        ahead.start()
        self._stack.push_async_callback(ahead.close)
        return ahead

    async def _evaluate(self, parts: Sequence[Part], limit: float) -> list[PlayedPart]:
        # Collection is held, so that a validation queues behind few training episodes and measures little of their
        # load. Running episodes end normally and make room, so there is no deadlock.
        with self._ahead.held() if self._ahead else nullcontext():
            return await self._parts.collector.evaluate_parts(parts, deadline=limit)

    def _publish(self, version: int, publication: Coroutine[Any, Any, SyncReport]) -> SyncReport:
        self._version = version

        async def work() -> SyncReport:
            report = await publication
            if self._ahead is not None and version != self._ahead.version:
                self._ahead.advance(version)
            return report

        r, doing = self.config.rollout, f"publishing version {version}"
        # An engine that fails on the way is restarted with these weights, and waited for.
        limit = r.weight_sync.timeout + r.engine_start_timeout + GRACE_SECONDS
        return self._background.call(work(), component="weight sync", doing=doing, timeout=limit)

    @property
    def _pause_mode(self) -> PauseMode:
        """Running requests end on the old weights, or continue with the new ones where collection is asynchronous."""
        return "keep" if self._ahead else "wait"

    @property
    def _parts(self) -> RunningParts:
        assert self._running is not None, "start() has not run"
        return self._running
