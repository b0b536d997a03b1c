"""Case A10: only finite numbers that a workflow returns become rewards; everything else is counted as its fault."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from tau2_lightning.errors import DeadlineExceeded, WorkflowFault
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.collect.online import OnlineCollector
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.trajectory import Rollout
from tests.cases.foreign import REQUEST, USER, ask, stage
from tests.rollout.proxy.rig import Rig

NAN, INF = float("nan"), float("inf")
BAD: list[Any] = [
    NAN, INF, -INF, None, "1", "", {}, {"reward": None}, {"reward": NAN}, {"reward": "1"}, {"info": 3, "outcome": None},
    [1.0], 1e300, 10**400, 1 + 1j, np.float32("nan"), np.array([1.0, 2.0]), torch.tensor([1.0, 0.0]),
    torch.tensor(math.inf), {"reward": 1.0, "turn_rewards": {0: NAN}}, {"reward": 1.0, "turn_rewards": [1.0]},
    {"turn_rewards": {}},
]  # fmt: skip
GOOD: list[tuple[Any, float]] = [
    (1, 1.0), (0.5, 0.5), (-2, -2.0), (True, 1.0), (False, 0.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0),
    (np.bool_(True), 1.0), (torch.tensor(0.25), 0.25), (torch.tensor([0.25], requires_grad=True), 0.25),
    (np.array(1.5), 1.5), (Decimal("0.5"), 0.5), ({"reward": np.float64(1.0)}, 1.0),
    ({"reward": True, "turn_rewards": {0: 0.25}}, 1.25), ({"turn_rewards": {-1: 2}}, 2.0), ({0: 0.75}, 0.75),
    ({"reward": 1.0, "seconds": "12"}, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("given", BAD, ids=repr)
async def test_a10_what_is_no_finite_number_is_a_fault_of_the_workflow_and_in_no_group(given: Any) -> None:
    async def play(client: Any, data: Any) -> Any:
        await ask(client)
        return given if data["task_id"] == "task-0" else 1.0

    async with stage(play, retries=2) as at:
        collection = await at.collect(n_groups=2)
        assert dict(collection.excluded) == {"workflow:bad_reward": 2}
        assert [group.rewards for group in collection.all_groups] == [(1.0, 1.0)]
        assert collection.lost == 1
        assert len(at.rig.engine.calls) == 4, "such an episode is not played again"


@pytest.mark.parametrize(("given", "reward"), GOOD, ids=repr)
async def test_a10_numbers_bools_and_values_of_one_element_are_rewards(given: Any, reward: float) -> None:
    async def play(client: Any, data: Any) -> Any:
        await ask(client)
        return given

    async with stage(play) as at:
        rollout = await at.runner.run(REQUEST)
        assert rollout.reward == reward
        assert sum(turn.reward for row in rollout.trajectories for turn in row.turns) == reward


async def test_a10_rewards_by_completion_reach_their_turns() -> None:
    async def play(client: Any, data: Any) -> Any:
        first = await ask(client)
        after = [*USER, first.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": "Go on."}]
        second = await ask(client, after)
        return {first.id: 0.25, second.id: 1.0}

    async with stage(play) as at:
        rollout = await at.runner.run(REQUEST)
        (row,) = rollout.trajectories
        assert [turn.reward for turn in row.turns] == [0.25, 1.0] and rollout.reward == 1.25


@pytest.mark.parametrize("used", [0, 1])
async def test_a10_of_several_choices_the_used_one_gets_the_reward_of_their_completion(used: int) -> None:
    async def play(client: Any, data: Any) -> Any:
        first = await ask(client, n=2)
        answer = first.choices[used].message.model_dump(exclude_none=True)
        second = await ask(client, [*USER, answer, {"role": "user", "content": "Go on."}])
        return {first.id: 0.25, second.id: 1.0}

    async with stage(play) as at:
        at.rig.engine.script.extend(["one", "two", "three"])
        (row,) = (await at.runner.run(REQUEST)).trajectories
        assert [turn.reward for turn in row.turns] == [0.25, 1.0]


@pytest.mark.parametrize(
    ("also", "cause", "told"),
    [({"chatcmpl-gone": 1.0}, "turn_not_found", "chatcmpl-gone"), ({"reward": 1.0}, "bad_reward", "turn_rewards")],
)
async def test_a10_unknown_completions_and_mixed_forms_are_faults_that_say_why(
    also: dict[str, float], cause: str, told: str
) -> None:
    async def play(client: Any, data: Any) -> Any:
        return {(await ask(client)).id: 1.0, **also}

    async with stage(play) as at:
        with pytest.raises(WorkflowFault, match=told) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == f"workflow:{cause}"


@pytest.mark.parametrize("reward", ["NaN", "Infinity", "-Infinity", "1e400", "1e300", "null", '"1"', "[1]"])
async def test_a10_the_route_of_rewards_refuses_what_is_not_finite(reward: str) -> None:
    async with Rig(ProxySettings()) as rig:
        collector = OnlineCollector(rig.store)
        root = rig.server.base_url.removesuffix("/v1")
        session = rig.store.start(group_id="g")
        headers = {"Authorization": f"Bearer {session.api_key}", "Content-Type": "application/json"}
        url = f"{root}/sessions/{session.session_id}"
        await rig.post(session.api_key, {"messages": USER})
        for path in ("/reward", "/end"):
            if (path, reward) == ("/end", "null"):
                continue  # ends the session without a reward, which is allowed
            answer = await rig.http.post(url + path, content=f'{{"reward": {reward}}}', headers=headers)
            assert answer.status_code == 400, answer.text
        assert session.final_reward is None and not session.closed
        # Control: the same session accepts a number.
        (await rig.http.post(url + "/end", json={"reward": 0.5}, headers=headers)).raise_for_status()
        assert session.final_reward == 0.5 and not rig.store.sessions()
        with pytest.raises(DeadlineExceeded, match=r"unfinished: g 1/2$"):
            await collector.collect(CollectPlan(1, 2), deadline=0.1)


def test_a10_a_rollout_cannot_hold_a_reward_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="nan"):
        Rollout("t", "g", 0, NAN, ())
    assert Rollout("t", "g", 0, 0.0, ()).reward == 0.0
