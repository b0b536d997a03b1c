"""Sessions that outside programs start over HTTP, at times of their choice, become groups."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.collect.online import OnlineCollector
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import Rig

USER: Any = [{"role": "user", "content": "x"}]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def outside(rig: Rig, group: str, reward: float | None) -> None:
    """Play a session as an outside program, which only has the proxy's URL and a key."""
    root, admin = rig.server.base_url.removesuffix("/v1"), {"Authorization": f"Bearer {rig.settings.admin_key}"}
    started = (await rig.http.post(f"{root}/sessions", json={"task_id": "t", "group_id": group}, headers=admin)).json()
    mine = {"Authorization": f"Bearer {started['api_key']}"}
    await rig.http.post("/chat/completions", json={"messages": USER}, headers=mine)
    end = {} if reward is None else {"reward": reward}
    answer = await rig.http.post(f"{root}/sessions/{started['session_id']}/end", json=end, headers=mine)
    assert answer.status_code == 200, answer.text


async def test_groups_of_finished_sessions() -> None:
    async with Rig(ProxySettings()) as rig:
        collector = OnlineCollector(rig.store)
        batch = asyncio.create_task(collector.collect(CollectPlan(1, 2, max_refill=1), deadline=20))
        for group, reward in (("flat", 1.0), ("flat", 1.0), ("g", None), ("", 1.0), ("g", 0.0), ("g", 1.0)):
            await outside(rig, group, reward)
        collection = await batch
        (kept,), (dropped,) = collection.groups, collection.dropped
        assert (kept.group_id, kept.rewards, dropped.group_id) == ("g", (0.0, 1.0), "flat")
        assert [row.sampled_tokens for rollout in kept.rollouts for row in rollout.trajectories] == [6, 6]
        assert dict(collection.excluded) == {"session:no_reward": 1, "session:no_group": 1}
        assert len(rig.store) == 0


async def test_waiting_has_a_deadline_that_says_what_is_missing() -> None:
    async with Rig(ProxySettings()) as rig:
        collector = OnlineCollector(rig.store)
        await outside(rig, "lonely", 1.0)
        with pytest.raises(DeadlineExceeded, match=r"0 of 1 groups, unfinished: lonely 1/2"):
            await collector.collect(CollectPlan(1, 2), deadline=0.2)


async def test_groups_that_never_fill_are_given_up_and_counted() -> None:
    async with Rig(ProxySettings()) as rig:
        clock = Clock()
        collector = OnlineCollector(rig.store, group_timeout=60, clock=clock)
        await outside(rig, "old", 1.0)
        batch = asyncio.create_task(collector.collect(CollectPlan(1, 2), deadline=1000))
        await asyncio.sleep(0)
        clock.now = 59.0
        await outside(rig, "young", 0.0)
        clock.now = 61.0
        await outside(rig, "old", 0.0)  # the first group has timed out: this starts another one
        await outside(rig, "young", 1.0)
        collection = await batch
        (kept,) = collection.groups
        assert (kept.group_id, kept.rewards) == ("young", (0.0, 1.0))
        assert dict(collection.excluded) == {"session:group_unfilled": 1}
        # This group is complete, but no batch takes it before its timeout.
        await outside(rig, "idle", 0.0)
        await outside(rig, "idle", 1.0)
        clock.now = 200.0
        await outside(rig, "new", 0.0)
        await outside(rig, "new", 1.0)
        collection = await collector.collect(CollectPlan(1, 2), deadline=5)
        assert [group.group_id for group in collection.groups] == ["new"]
        assert dict(collection.excluded) == {"session:group_unfilled": 1, "session:group_untrained": 2}


async def test_a_group_is_given_up_while_nothing_happens() -> None:
    async with Rig(ProxySettings()) as rig:
        collector = OnlineCollector(rig.store, group_timeout=0.1)
        batch = asyncio.create_task(collector.collect(CollectPlan(1, 2), deadline=2))
        await asyncio.sleep(0)
        await outside(rig, "lonely", 1.0)
        with pytest.raises(DeadlineExceeded, match=r"0 of 1 groups, unfinished: none"):
            await batch


async def test_sessions_that_end_without_a_reward_are_counted() -> None:
    async with Rig(ProxySettings()) as rig:
        clock = Clock()
        rig.store._clock = clock
        collector = OnlineCollector(rig.store)
        rig.store.abort(rig.store.start(group_id="g").session_id)
        rig.store.start(group_id="g", task_id="left alone")
        clock.now = 1e6
        assert len(rig.store.reap()) == 1
        for reward in (0.0, 1.0):
            await outside(rig, "g", reward)
        collection = await collector.collect(CollectPlan(1, 2), deadline=5)
        assert dict(collection.excluded) == {"session:aborted": 1, "session:reaped": 1}
