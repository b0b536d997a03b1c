"""Sessions of outside programs become groups, over HTTP, with nobody's plan but their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.collector import CollectPlan
from tau2_lightning.rollout.online import OnlineCollector
from tau2_lightning.rollout.proxy import ProxySettings
from tests.rollout.proxy_rig import Rig

USER: Any = [{"role": "user", "content": "x"}]


async def outside(rig: Rig, group: str, reward: float | None) -> None:
    """A program that knows nothing but the proxy's URL and a key."""
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
