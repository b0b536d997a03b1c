"""``rollout.mode=online``: outside programs open sessions, talk and set rewards; finished groups become batches."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from tau2_lightning.errors import DeadlineExceeded

from .collector import Collection, CollectPlan
from .session_store import SessionStore
from .sessions import Session
from .trajectory import Group, Rollout


class OnlineCollector:
    """Gathers closed sessions into groups: ``n_samples`` sessions that were started with the same ``group_id``.

    A session counts once it was ended with a reward; one that was aborted, reaped or ended without a reward never
    does, and is counted in ``Collection.excluded``. Sessions without a group id cannot be compared with any other and
    are excluded too. A session is forgotten when its rollout is taken.
    """

    def __init__(self, store: SessionStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._open: dict[str, list[Rollout]] = {}
        self._ready: list[Group] = []
        self._excluded: Counter[str] = Counter()
        self._changed = asyncio.Event()
        self._n_samples = 0
        store.on_close.append(self._finished)

    async def collect(self, plan: CollectPlan, *, deadline: float) -> Collection:
        """Wait for ``plan.n_groups`` groups, dropping those without reward variance where the plan filters.

        At most ``plan.max_refill`` dropped groups are waited for again; after that, fewer groups are returned. Raises
        DeadlineExceeded naming what is missing after ``deadline`` seconds.
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
            group = self._ready.pop(0)
            (kept if plan.useful(group) else dropped).append(group)
        excluded, self._excluded = self._excluded, Counter()
        return Collection(tuple(kept), tuple(dropped), excluded=excluded)

    async def _wait(self, ends: float, deadline: float, have: int, plan: CollectPlan) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(max(ends - self._clock(), 0)):
                await self._changed.wait()
        except TimeoutError as error:
            waiting = ", ".join(f"{name} {len(found)}/{plan.n_samples}" for name, found in list(self._open.items())[:5])
            doing = f"waiting for online sessions: {have} of {plan.n_groups} groups, unfinished: {waiting or 'none'}"
            raise DeadlineExceeded("online clients", deadline, doing) from error

    def _finished(self, session: Session) -> None:
        rewarded = session.final_reward is not None or any(node.reward is not None for node in session.nodes)
        cause = (
            "no_group" if not session.group_id else "no_reward" if not rewarded else "" if session.turns else "no_turn"
        )
        if cause:
            self._excluded[f"session:{cause}"] += 1
            self._store.end(session.session_id)
            return
        rows = self._store.export(session.session_id)
        found = self._open.setdefault(session.group_id, [])
        reward = session.final_reward or 0.0
        reward += sum(node.reward or 0.0 for node in session.nodes)
        seconds = self._clock() - session.started_at
        found.append(Rollout(session.task_id, session.group_id, len(found), reward, rows, seconds=seconds))
        self._store.end(session.session_id)
        self._changed.set()

    def _group(self) -> None:
        """Move groups that have enough samples to the ready list; a group's surplus starts another."""
        size = self._n_samples
        for group_id in [name for name, found in self._open.items() if len(found) >= size]:
            found = self._open.pop(group_id)
            self._ready.append(Group(group_id, found[0].task_id, tuple(found[:size])))
            if found[size:]:
                self._open[group_id] = found[size:]
