"""Collection in turns with training: the groups of one training batch from a stream of tasks, and evaluations."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import structlog

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.episode.attempts import MOST_KEPT, FailedAttempt
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.episode.seeds import derived_seed
from tau2_lightning.trajectory import Group, Rollout

from .concurrently import within
from .late import unfinished
from .progress import Progress, together, too_many_faults
from .validation import Part, PlayedPart, Playing, end_of, in_turns

log = structlog.get_logger(__name__)

#: The component of episodes that were not finished when the time of a training batch was over: ``batch:timeout``.
BATCH = "batch"


@dataclass(frozen=True)
class Queue:
    """The state of the background collection after a batch, in groups. All 0 when collection takes turns with training.

    ``ready`` groups are finished and wait for a later batch, ``running`` ones are being played, and ``dropped`` ones
    were given up since the previous batch because of their age.
    """

    ready: int = 0
    running: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Collection:
    """The groups of one batch, and what was left out of it.

    ``groups`` carry signal (all groups when filtering is off). ``dropped`` are groups without signal; ``lost`` counts
    groups with fewer than two finished rollouts; ``excluded`` counts faults by ``component:cause``. ``lost_groups``
    and ``stale_groups`` are what was played of lost groups and of groups that were given up for their age. ``tasks``
    are those of all groups that this is the account of, by group id; None: of all that were begun since the last one.
    """

    groups: tuple[Group, ...]
    dropped: tuple[Group, ...] = ()
    lost: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    queue: Queue = Queue()
    lost_groups: tuple[Group, ...] = ()
    stale_groups: tuple[Group, ...] = ()
    tasks: Mapping[str, Any] | None = None

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """Groups with and without signal."""
        return self.groups + self.dropped


@dataclass(frozen=True)
class CollectPlan:
    """A batch: ``n_groups`` groups of ``n_samples`` episodes; at most ``max_refill`` groups replace groups without
    signal.

    ``step`` is a part of the episodes' seeds, so that a resumed run plays what an uninterrupted one would have played.
    ``signal`` decides whether a group can teach; by default, whether its rewards differ.
    """

    n_groups: int
    n_samples: int
    filter_groups: bool = True
    max_refill: int = 0
    step: int = 0
    signal: Callable[[Group], bool] = attrgetter("has_signal")

    @property
    def episodes(self) -> int:
        """The number of episodes without refills."""
        return self.n_groups * self.n_samples

    @staticmethod
    def lost(group: Group) -> bool:
        """Whether too few episodes of ``group`` finished to compare them."""
        return len(group.rollouts) < 2

    def useful(self, group: Group) -> bool:
        """Whether ``group`` belongs in the batch."""
        return not self.lost(group) and (not self.filter_groups or self.signal(group))


class Collector:
    """Runs episodes concurrently, at most ``max_concurrent`` at a time.

    An episode's seed follows from ``seed``, the step and the episode's place in it, never from the order in which
    episodes end; a retried episode keeps its seed. Every validation has the same seeds, so that scores before and after
    training differ by the policy only. ``tools_of`` gives the tool schemas of a task. ``late`` are the episodes that a
    batch or a validation did not wait for, until somebody takes them. ``progress`` is replaced at the start of a
    collection and may be read from any thread.

    The collection ends with TooManyFaults, which holds the newest fault's traceback, when more than
    ``max_fault_fraction`` of the episodes planned for a batch or a validation, or for one domain in it, are excluded.
    """

    def __init__(
        self,
        runner: EpisodeRunner,
        *,
        max_concurrent: int,
        tools_of: Callable[[Any], Sequence[Any] | None] = lambda task: None,
        seed: int = 0,
        max_fault_fraction: float = 1.0,
    ) -> None:
        self.runner, self.tools_of, self.max_concurrent = runner, tools_of, max_concurrent
        self.late: deque[FailedAttempt] = deque(maxlen=MOST_KEPT)
        self._counts = [Progress()]
        self._gate = asyncio.Semaphore(max_concurrent)
        self._seed, self._max_fault_fraction = seed, max_fault_fraction

    @property
    def progress(self) -> Progress:
        """The counts of what is collected now: of a validation, over all its parts."""
        return together(self._counts)

    @progress.setter
    def progress(self, counts: Progress) -> None:
        self._counts = [counts]

    async def collect(self, tasks: Iterator[Any], plan: CollectPlan, *, deadline: float) -> Collection:
        """Collect one batch from ``tasks`` within ``deadline`` seconds.

        ``n_groups`` groups start simultaneously. Each group without signal is replaced by a new one, at most
        ``max_refill`` times. Groups come back in the order of their start. When the time is over, the batch goes on
        without the episodes that still run: they are excluded as ``batch:timeout``.
        """
        self.progress = Progress("rollout", total=plan.episodes, batch=plan.episodes)
        clock = asyncio.get_running_loop().time
        ends = clock() + deadline
        kept: list[Group] = []
        dropped: list[Group] = []
        lost: list[Group] = []
        refills = plan.max_refill
        excluded: Counter[str] = Counter()
        # The k-th group of a step gets the k-th task and seed, whatever the order in which groups end.
        places = itertools.count()

        def launch() -> asyncio.Task[Group]:
            left = max(0.0, ends - clock())
            return asyncio.create_task(self.play_group(next(tasks), plan, next(places), self.progress, left))

        pending = {launch() for _ in range(plan.n_groups)}
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for group in (task.result() for task in done):
                    excluded.update(group.excluded)
                    if plan.useful(group):
                        kept.append(group)
                        continue
                    (lost if plan.lost(group) else dropped).append(group)
                    if refills and clock() < ends:
                        refills -= 1
                        self.progress.total += plan.n_samples
                        pending.add(launch())
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        kept.sort(key=_number)
        dropped.sort(key=_number)
        return Collection(tuple(kept), tuple(dropped), len(lost), excluded, lost_groups=tuple(lost))

    async def evaluate(
        self,
        tasks: Sequence[Any],
        num_trials: int,
        *,
        deadline: float,
        sampling: Mapping[str, Any] | None = None,
        partial: bool = False,
    ) -> tuple[list[Rollout], Counter[str]]:
        """Play each task ``num_trials`` times; returns finished rollouts in task order, and exclusions by cause.

        ``sampling`` holds fields of completion requests that replace the workflow's own. After ``deadline`` seconds it
        raises DeadlineExceeded; with ``partial`` it returns the finished rollouts instead, and the other episodes are
        excluded as ``validation:timeout``.
        """
        part = Part(tasks, num_trials, sampling or {}, timeout=deadline if partial else None)
        (played,) = await self.evaluate_parts([part], deadline=deadline)
        return played.result()

    async def evaluate_parts(self, parts: Sequence[Part], *, deadline: float) -> list[PlayedPart]:
        """Play all ``parts`` of a validation at the same time, within ``deadline`` seconds; returns what came of each.

        They share the limit on concurrent episodes and start theirs in turns (`in_turns`). Otherwise each is played as
        it is alone: the same seeds, its own counts, and faults that end no other part (`PlayedPart.failure`).
        """
        asked, alone = [self._asked_by(part) for part in parts], len(parts) == 1
        counts = [
            Progress("validate" if alone else f"validation of {part.domain}", total=part.episodes, batch=part.episodes)
            for part in parts
        ]
        self._counts, playing = counts, list[list[Playing]]([] for _ in parts)
        for at in in_turns([part.episodes for part in parts]):
            request = asked[at][len(playing[at])]
            counts[at].plan(_domain(request.task), 1)
            playing[at].append(asyncio.ensure_future(self._episode(request, counts[at])))
        each = zip(parts, asked, playing, counts, strict=True)
        try:
            return await asyncio.gather(*(end_of(*one, deadline, self.late) for one in each))
        finally:
            for task in itertools.chain(*playing):
                task.cancel()

    def _asked_by(self, part: Part) -> list[EpisodeRequest]:
        places = ((task, ("validate", number)) for number, task in enumerate(part.tasks))
        return [one for task, at in places for one in self._requests(task, part.num_trials, at, part.sampling)]

    async def play_group(
        self, task: Any, plan: CollectPlan, place: int, progress: Progress, seconds: float | None = None
    ) -> Group:
        """Play ``task`` ``plan.n_samples`` times as the ``place``-th group of ``plan.step``; count in ``progress``.

        Episodes that still run after ``seconds`` are excluded (None: there is no such limit).
        """
        domain = _domain(task)
        progress.plan(domain, plan.n_samples)
        requests = self._requests(task, plan.n_samples, ("train", plan.step, place))
        results = await within([self._episode(request, progress) for request in requests], seconds)
        faults = Counter(result.name for result in results if isinstance(result, InfrastructureFault))
        if late := results.count(None):
            fault = DeadlineExceeded(BATCH, seconds or 0.0, f"playing task {task.task_id}")
            log.warning("episodes excluded: the time of their batch is over", task=task.task_id, episodes=late)
            faults[fault.name] += late
            for request in (request for request, result in zip(requests, results, strict=True) if result is None):
                self.late.append(unfinished(request, fault.name, str(fault)))
                self._exclude(fault, domain, progress)
        rollouts = tuple(r for r in results if isinstance(r, Rollout))
        return Group(group_id=str(place), task_id=task.task_id, rollouts=rollouts, excluded=faults, domain=domain)

    def _requests(
        self, task: Any, count: int, place: tuple[int | str, ...], sampling: Mapping[str, Any] | None = None
    ) -> list[EpisodeRequest]:
        return [
            EpisodeRequest(
                task=task,
                task_id=task.task_id,
                group_id=str(place[-1]),
                sample=sample,
                seed=derived_seed(self._seed, *place, sample),
                tools=self.tools_of(task),
                sampling=sampling or {},
                purpose=str(place[0]),
            )
            for sample in range(count)
        ]

    async def _episode(self, request: EpisodeRequest, progress: Progress) -> Rollout | InfrastructureFault:
        asked = time.monotonic()
        async with self._gate:
            progress.started += 1
            queued = time.monotonic() - asked
            try:
                rollout = await self.runner.run(request)
            except InfrastructureFault as fault:
                self._exclude(fault, _domain(request.task), progress)
                return fault
        progress.finish(_domain(request.task))
        progress.reward_sum += rollout.reward
        progress.sampled_tokens += rollout.sampled_tokens
        progress.transfers += bool(rollout.outcome and rollout.outcome.transferred)
        return replace(rollout, queued_s=queued)

    def _exclude(self, fault: InfrastructureFault, domain: str, progress: Progress) -> None:
        """Count an excluded episode. Raises TooManyFaults when these are too many."""
        progress.exclude(fault, domain)
        if what := progress.too_many(self._max_fault_fraction):
            raise too_many_faults(progress, what, self._max_fault_fraction, fault) from fault


def _domain(task: Any) -> str:
    return getattr(task, "domain", "")


def _number(group: Group) -> int:
    return int(group.group_id)
