"""Collection beside training: groups are admitted, awaited and given out under a bound on staleness."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import structlog

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.trajectory import Group

from .collector import Collection, Collector, CollectPlan, Queue
from .progress import Progress
from .staleness import StalenessScheduler, Stragglers

log = structlog.get_logger(__name__)


class AsyncCollector:
    """Plays groups of ``tasks`` with ``collector`` in the background, for a trainer that takes one batch per version.

    Call ``start`` in the event loop. Then, for each step, ``take`` a batch, and ``advance`` to the version of the new
    weights when the engine has them. No token of a batch is more than ``max_head_offpolicyness`` versions older than
    the weights it is given out for: the scheduler decides by the oldest token which groups may start and which are
    given out. Running episodes continue across updates; the engine reports the version of every token.

    Episodes of a group that still run after ``group_seconds`` are excluded, and the group goes on without them. As in
    ``Collector``, a group without signal, or with fewer than two finished episodes, is replaced by another, at
    most ``plan.max_refill`` times per batch. After that such a group keeps its place in a batch, which then has fewer
    groups to train on: a policy that solves nothing, or an engine that has died, leads to small batches and never to an
    endless collection. Groups too old for any batch are given up oldest first, cancelled if they still run, and
    counted. With ``stragglers="wait"`` a batch waits for slow groups in time, so that groups are given up only when
    versions jump.

    Any other failure in the background ends the collection; the next ``take`` raises it, with a note that names the
    group. Not thread-safe: everything except ``progress`` belongs to the event loop.
    """

    def __init__(
        self,
        collector: Collector,
        tasks: Iterator[Any],
        plan: CollectPlan,
        *,
        max_head_offpolicyness: int,
        stragglers: Stragglers = "wait",
        version: int = 0,
        group_seconds: float | None = None,
    ) -> None:
        self.collector, self.plan, self._group_seconds = collector, plan, group_seconds
        self.progress = Progress("rollout", batch=plan.episodes)
        self._tasks = tasks
        self._scheduler = StalenessScheduler(
            batch_size=plan.n_groups,
            max_head_offpolicyness=max_head_offpolicyness,
            # More groups would only wait for a free episode and become too old.
            max_running=max(1, -(-collector.max_concurrent // plan.n_samples)),
            stragglers=stragglers,
            version=version,
        )
        self._task_of: dict[int, Any] = {}  # of the outstanding groups, which run or are ready
        self._aside: dict[int, Any] = {}  # tasks of groups that have ended without a place in a batch, until it is told
        self._playing: dict[int, asyncio.Task[Group]] = {}
        self._ready: dict[int, Group] = {}
        self._numbers = itertools.count()
        self._refills = plan.max_refill
        self._dropped: list[Group] = []
        self._lost: list[Group] = []
        self._old: list[Group] = []
        self._stale = 0
        self._excluded: Counter[str] = Counter()
        self._held = 0
        self._wake, self._news = asyncio.Event(), asyncio.Event()
        self._driver: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """The weight version that the next batch is given out for."""
        return self._scheduler.version

    @property
    def unfinished(self) -> list[Any]:
        """Tasks of the groups that were started and are in no collection yet, in the order of their start."""
        return [task for _, task in sorted((self._task_of | self._aside).items())]

    def start(self) -> None:
        """Begin to play groups."""
        self._driver = asyncio.create_task(self._drive(), name="collecting in the background")
        self._driver.add_done_callback(lambda _: self._news.set())

    async def take(self, *, deadline: float) -> Collection:
        """The batch of the current version, awaited for at most ``deadline`` seconds, and the counts since the last.

        Raises DeadlineExceeded naming the groups that were awaited, or the error that ended the collection.
        """
        self.collector.progress = self.progress
        try:
            async with asyncio.timeout(deadline) as limit:
                while True:
                    self._raise_failure()
                    if (numbers := self._scheduler.take()) is not None:
                        break
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            if not limit.expired():
                raise  # an episode's own
            late = ", ".join(map(_name_of, self._awaited())) or "groups to start"
            doing = f"waiting for {late} ({self.progress.describe()})"
            raise DeadlineExceeded("collector", deadline, doing) from error
        collection = self._collection(sorted(cast("tuple[int, ...]", numbers)))
        self._wake.set()
        return collection

    def advance(self, version: int) -> None:
        """The engines serve ``version`` from now on. Groups that became too old are given up and counted."""
        for number in self._scheduler.advance(version):
            self._forget(cast("int", number))
        self._wake.set()
        self._news.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Start no further group inside; running groups continue."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._wake.set()

    async def close(self) -> None:
        """Cancel the running groups. Safe to call twice; a failure that no ``take`` has raised is logged."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        driver.cancel()
        (ended,) = await asyncio.gather(driver, return_exceptions=True)
        if isinstance(ended, Exception):
            log.warning("collection had failed", error=repr(ended))

    async def _drive(self) -> None:
        try:
            while True:
                self._admit()
                self._wake.clear()
                await self._wake.wait()
                for number in [number for number, playing in self._playing.items() if playing.done()]:
                    self._settle(number, self._playing.pop(number))
                self._news.set()
        finally:
            running = list(self._playing.values())
            for playing in running:
                playing.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _admit(self) -> None:
        while not self._held and self._scheduler.capacity:
            task, number = next(self._tasks), next(self._numbers)
            self._scheduler.admit(number)
            self._task_of[number] = task
            self.progress.total += self.plan.n_samples
            play = self.collector.play_group(task, self.plan, number, self.progress, self._group_seconds)
            playing = asyncio.create_task(play)
            playing.add_done_callback(lambda _: self._wake.set())
            self._playing[number] = playing

    def _settle(self, number: int, playing: asyncio.Task[Group]) -> None:
        """A group has ended: it waits to be given out, or another one replaces it."""
        task = self._task_of.get(number)
        if task is None and playing.cancelled():
            return
        try:
            group = playing.result()
        except Exception as error:
            error.add_note(f"in the background of the collector, playing {_name_of(task)}")
            raise
        if task is None:
            return
        useful = self.plan.useful(group)
        if not useful and self._refills:
            self._refills -= 1
            self._scheduler.discard(number, "lost" if self.plan.lost(group) else "no_signal")
            self._aside[number] = self._task_of.pop(number)
            self._set_aside(group)
            return
        self._ready[number] = group
        oldest = min((r.oldest_version for r in group.rollouts if r.oldest_version >= 0), default=None)
        try:
            # The engine may have newer weights already than ``advance`` has announced: count their tokens as current.
            self._scheduler.finish(number, None if oldest is None else min(oldest, self._scheduler.version))
        except ValueError as error:
            raise InfrastructureFault("engine", "weight version", str(error)) from error

    def _collection(self, numbers: list[int]) -> Collection:
        groups = []
        for number in numbers:
            group = self._ready.pop(number)
            self._aside[number] = self._task_of.pop(number)
            if self.plan.useful(group):
                groups.append(group)
                self._excluded.update(group.excluded)
            else:
                self._set_aside(group)
        queue = Queue(ready=len(self._ready), running=self._scheduler.running, dropped=self._stale)
        collection = Collection(
            tuple(groups),
            tuple(self._dropped),
            len(self._lost),
            self._excluded,
            queue,
            lost_groups=tuple(self._lost),
            stale_groups=tuple(self._old),
            tasks={str(number): task for number, task in sorted(self._aside.items())},
        )
        self._aside = {}
        self._dropped, self._lost, self._old, self._stale, self._excluded = [], [], [], 0, Counter()
        self._refills = self.plan.max_refill
        self.progress.rebase()
        return collection

    def _set_aside(self, group: Group) -> None:
        (self._lost if self.plan.lost(group) else self._dropped).append(group)
        self._excluded.update(group.excluded)

    def _forget(self, number: int) -> None:
        self._stale += 1
        self._aside[number] = self._task_of.pop(number)
        if (ready := self._ready.pop(number, None)) is not None:
            self._old.append(ready)
            self._excluded.update(ready.excluded)
        if (playing := self._playing.get(number)) is not None:
            playing.cancel()
        log.warning("group given up for its age", group=number, version=self._scheduler.version)

    def _awaited(self) -> list[Any]:
        awaited = self._scheduler.waiting_for or tuple(self._playing)
        return [self._task_of[number] for number in awaited if number in self._task_of]

    def _raise_failure(self) -> None:
        if self._driver is None:
            raise InfrastructureFault("collector", "closed", "a batch was asked of a collection that has ended")
        if self._driver.done():
            self._driver.result()


def _name_of(task: Any) -> str:
    return f"task {getattr(task, 'task_id', task)}"
