"""Collection from outside programs (``rollout.mode=online``): their finished sessions are grouped into batches."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Session
from tau2_lightning.trajectory import Group, Rollout

from .collector import Collection, CollectPlan


@dataclass
class _Filling:
    """The finished sessions of an incomplete group; ``since`` is the time at which the first of them finished."""

    since: float
    rollouts: list[Rollout]


class OnlineCollector:
    """Gathers closed sessions into groups: ``n_samples`` sessions that were started with the same ``group_id``.

    A session belongs to its group when it has ended with a reward. Sessions that were aborted, reaped or ended without
    a reward, those without a group id, and those whose episode must not be scored (`SessionStore.fault`), are excluded
    and counted in ``Collection.excluded``. A session is forgotten
    when its rollout is taken. A group that is incomplete ``group_timeout`` seconds after its first session finished is
    given up, and so is a complete group that was not collected for as long; their sessions are counted as
    ``session:group_unfilled`` and ``session:group_untrained``.
    """

    def __init__(
        self, store: SessionStore, *, group_timeout: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._timeout, self._clock = store, group_timeout, clock
        self._open: dict[str, _Filling] = {}
        self._ready: list[tuple[float, Group]] = []  # with the times at which they became complete
        self._excluded: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._n_samples = 0
        store.on_close.append(self._finished)
        store.on_lost.append(self._lost)

    async def collect(self, plan: CollectPlan, *, deadline: float) -> Collection:
        """Wait for ``plan.n_groups`` groups; where the plan filters, groups without signal are dropped.

        At most ``plan.max_refill`` dropped groups are replaced; after that, fewer groups are returned. Raises
        DeadlineExceeded naming the incomplete groups after ``deadline`` seconds.
        """
        self._n_samples = plan.n_samples
        kept: list[Group] = []
        dropped: list[Group] = []
        ends = self._clock() + deadline
        while len(kept) < plan.n_groups and len(kept) + len(dropped) < plan.n_groups + plan.max_refill:
            self._group()
            if not self._ready:
                await self._wait(ends, deadline, len(kept), plan)
                continue
            _, group = self._ready.pop(0)
            (kept if plan.useful(group) else dropped).append(group)
        excluded, self._excluded = +self._excluded, Counter()
        return Collection(tuple(kept), tuple(dropped), excluded=excluded)

    async def _wait(self, ends: float, deadline: float, have: int, plan: CollectPlan) -> None:
        """Return when a session finishes or a group becomes too old; raise DeadlineExceeded at ``ends``."""
        self._changed.clear()
        soonest = min([ends, *(filling.since + self._timeout for filling in self._open.values())])
        try:
            async with asyncio.timeout(max(soonest - self._clock(), 0)):
                await self._changed.wait()
        except TimeoutError as error:
            if self._clock() < ends:
                return
            some = list(self._open.items())[:5]
            waiting = ", ".join(f"{name} {len(found.rollouts)}/{plan.n_samples}" for name, found in some)
            doing = f"waiting for online sessions: {have} of {plan.n_groups} groups, unfinished: {waiting or 'none'}"
            if left_out := ", ".join(f"{cause} {n}" for cause, n in (+self._excluded).most_common()):
                doing += f"; excluded: {left_out}"
            raise DeadlineExceeded("online clients", deadline, doing) from error

    def _lost(self, session: Session, why: str) -> None:
        self._excluded[f"session:{why}"] += 1

    def _finished(self, session: Session) -> None:
        rewarded = session.final_reward is not None or any(node.reward is not None for node in session.nodes)
        fault = self._store.fault(session.session_id)
        cause = "" if fault is None else fault.name
        if not session.group_id or not rewarded:
            cause = "session:no_reward" if session.group_id else "session:no_group"
        if cause:
            self._excluded[cause] += 1
            self._store.end(session.session_id)
            return
        rows = self._store.export(session.session_id)
        self._group()  # first, so that a group that is too old takes no more; also when no collection runs
        found = self._open.setdefault(session.group_id, _Filling(self._clock(), [])).rollouts
        seconds = self._clock() - session.started_at
        found.append(
            Rollout(session.task_id, session.group_id, len(found), session.total_reward, rows, seconds=seconds)
        )
        self._store.end(session.session_id)
        self._group()
        self._changed.set()

    def _group(self) -> None:
        """Move complete groups to the ready list (surplus sessions start another); give up groups that are too old."""
        size, now = self._n_samples, self._clock()
        if not size:
            return  # before the first batch
        for group_id, filling in list(self._open.items()):
            found = filling.rollouts
            if len(found) >= size:
                self._ready.append((now, Group(group_id, found[0].task_id, tuple(found[:size]))))
                filling.since, filling.rollouts = now, found[size:]
            elif now - filling.since >= self._timeout:
                self._excluded["session:group_unfilled"] += len(found)
                filling.rollouts = []
            if not filling.rollouts:
                del self._open[group_id]
        late = [group for since, group in self._ready if now - since >= self._timeout]
        self._excluded["session:group_untrained"] += sum(len(group.rollouts) for group in late)
        self._ready = [(since, group) for since, group in self._ready if now - since < self._timeout]
