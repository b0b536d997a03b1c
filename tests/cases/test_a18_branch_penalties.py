"""A18: a penalty lowers the advantages of the row that has the turn, and of no other branch of the episode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO, DrGRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.session.tree import Node
from tau2_lightning.trajectory import Group, Rollout
from tests.batch.groups import trajectory
from tests.rollout.proxy.rig import TOOLS, Rig

FAILED = Rollout("t", "g", 1, 0.0, (trajectory([1, 9], [(1, 2)]),))


def advantages(rollout: Rollout, algorithm: GRPO, other: Rollout = FAILED) -> list[list[float]]:
    """Advantages of the trained tokens of each row of the episode."""
    batch = Batch.from_groups([Group("g", "t", (rollout, other))], algorithm, version=3)
    return [row.advantages[row.loss_mask].tolist() for row in batch.rows if row.episode == 0]


def episode(first: tuple[bool, float], second: tuple[bool, float], outcome: float = 1.0) -> Rollout:
    """Two branches of one turn each after a shared first turn. ``first`` and ``second`` are (malformed, own reward)."""
    store = SessionStore()
    session = store.start()
    parent = None
    for number, (malformed, reward, question) in enumerate([(False, 0.0, "a"), (*second, "b"), (*first, "c")]):
        generation = Generation((5, 6 + number), (-0.5, -0.5), (3, 3), "stop")
        asked, said = [{"role": "user", "content": question}], {"role": "assistant", "content": question}
        node = Node(parent, asked, said, [1], generation, f"c{number}", invalid_format=malformed)
        session.add(node)
        parent = parent or node
        store.set_reward(session.session_id, reward, turn=f"c{number}")
    store.set_reward(session.session_id, outcome)
    rows = store.export(session.session_id)
    assert len(rows) == 2
    return Rollout("t", "g", 0, outcome + first[1] + second[1], rows)


def test_a_malformed_turn_in_branch_one_leaves_the_outcome_of_branch_two_alone() -> None:
    algorithm = DrGRPO(invalid_format_penalty=0.4)
    # Totals .6 and 0, baseline .3: branch two gets the whole outcome, 1 - .3; branch one gets 1 - .4 - .3.
    first, second = advantages(episode((True, 0.0), (False, 0.0)), algorithm)
    assert first == pytest.approx([0.3] * 4) and second == pytest.approx([0.7] * 2)
    first, second = advantages(episode((False, 0.0), (True, 0.0)), algorithm)
    assert first == pytest.approx([0.7] * 4) and second == pytest.approx([0.3] * 2)
    first, second = advantages(episode((False, 0.0), (False, 0.0)), algorithm)  # control: no penalty
    assert first == pytest.approx([0.5] * 4) and second == pytest.approx([0.5] * 2)


def test_a_turns_own_reward_is_not_the_other_branchs_outcome() -> None:
    algorithm = DrGRPO()
    first, second = advantages(episode((False, 0.0), (False, 0.6)), algorithm)  # total 1.6, baseline .8
    assert first == pytest.approx([1.0 - 0.8] * 4) and second == pytest.approx([1.6 - 0.8] * 2)


@settings(max_examples=60, deadline=None)
@given(
    outcome=st.sampled_from([0.0, 1.0]),
    rewards=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    penalty=st.floats(0.1, 1.0),
    discount=st.floats(0.1, 1.0),
    scaling=st.sampled_from([1.0, 10.0]),
)
def test_branches_differ_by_what_is_their_own(outcome, rewards, penalty, discount, scaling) -> None:
    """The last turns of two branches have the same outcome and baseline, so they differ only by their own rewards."""
    algorithm = DrGRPO(invalid_format_penalty=penalty, turn_discount=discount, reward_scaling=scaling)
    played = episode((True, rewards[0]), (False, rewards[1]), outcome)
    total, solved = played.reward - penalty, Rollout("t", "g", 1, 1.0, FAILED.trajectories)
    if abs(total - 1.0) < 1e-5:
        return  # no signal in this group
    first, second = advantages(played, algorithm, solved)
    baseline = scaling * (total + 1.0) / 2
    assert first[-1] == pytest.approx(scaling * (outcome + rewards[0] - penalty) - baseline, abs=1e-5)
    assert second[-1] == pytest.approx(scaling * (outcome + rewards[1]) - baseline, abs=1e-5)
    assert first[0] == pytest.approx(discount * first[-1], abs=1e-5), "the shared turn belongs to the main row"


def test_the_standard_deviation_scales_penalties_too() -> None:
    first, second = advantages(episode((True, 0.0), (False, 0.0)), GRPO(invalid_format_penalty=0.4, norm_eps=0.0))
    unit = np.std([0.6, 0.0], ddof=1)
    assert first[-1] == pytest.approx(0.3 / unit) and second[-1] == pytest.approx(0.7 / unit)


async def test_from_a_clients_requests_to_the_advantages() -> None:
    """A client that rewrites its history has two branches; the call of the first cannot be read."""
    async with Rig(ProxySettings()) as rig:
        session = rig.store.start(tools=TOOLS)
        rig.engine.script.extend(['<tool_call>\n{"name": "look", "argu</tool_call>', "done"])
        await rig.post(session.api_key, {"messages": [{"role": "user", "content": "one"}], "tools": TOOLS})
        await rig.post(session.api_key, {"messages": [{"role": "user", "content": "two"}], "tools": TOOLS})
        rig.store.set_reward(session.session_id, 1.0)
        rows = rig.store.export(session.session_id)
    assert [[turn.invalid_format for turn in row.turns] for row in rows] == [[False], [True]]
    main, broken = advantages(Rollout("t", "g", 0, 1.0, rows), DrGRPO(invalid_format_penalty=0.4))
    assert main == pytest.approx([0.7] * len(main)) and broken == pytest.approx([0.3] * len(broken))
