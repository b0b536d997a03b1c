"""``mask_truncated``: tokens that a limit cut off are not trained, but still count in the baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.crediting import teaches
from tau2_lightning.trajectory import EpisodeOutcome, Group, Rollout, Turn
from tests.batch.groups import trajectory


def rollout(sample: int, reward: float, finish: str = "stop", reason: str | None = "user_stop") -> Rollout:
    """Two turns of three tokens; the second has the finish reason."""
    turns = (Turn(2, 5), Turn(6, 9, finish_reason=finish))
    row = trajectory(np.arange(10) + 10 * sample, [(2, 5), (6, 9)], turns=turns)
    outcome = EpisodeOutcome("t", reward, reason, 2, 0, 0, False, False, "none") if reason else None
    return Rollout("t", "g", sample, reward, (row,), outcome)


def trained(batch: Batch) -> dict[int, list[int]]:
    return {row.row_id: (np.flatnonzero(row.loss_mask) + 1).tolist() for row in batch.rows}


BOTH, FIRST = [2, 3, 4, 6, 7, 8], [2, 3, 4]


@pytest.mark.parametrize(
    ("level", "finish", "reason", "left"),
    [
        ("none", "length", "max_steps", BOTH),
        ("turn", "length", "user_stop", FIRST),
        ("turn", "stop", "max_steps", BOTH),  # its turns are whole
        ("episode", "length", "user_stop", None),
        ("episode", "stop", "max_steps", None),
        ("episode", "stop", "context_length_exceeded", None),
        ("episode", "stop", "context_window_exceeded", None),
        ("episode", "stop", "too_many_errors", BOTH),  # the agent's own end
        ("episode", "stop", "user_stop", BOTH),
        ("episode", "tool_calls", None, BOTH),  # an agent without an outcome: only its turns are known
        ("episode", "length", None, None),
    ],
)
def test_what_is_left_to_train(level, finish, reason, left) -> None:
    group = Group("g", "t", (rollout(0, 1.0), rollout(1, 0.0, finish, reason)))
    batch = Batch.from_groups([group], GRPO(mask_truncated=level), version=0)
    assert trained(batch) == {0: BOTH} | ({} if left is None else {1: left})
    assert batch.n_tokens == 6 + len(left or []) and batch.n_rows == 1 + (left is not None)
    assert batch.statistics["truncated_tokens"] == 6 - len(left or [])
    assert batch.statistics["rows_without_tokens"] == (left is None)


def test_a_truncated_episode_counts_in_the_baseline() -> None:
    group = Group("g", "t", (rollout(0, 1.0), rollout(1, 1.0), rollout(2, 0.0, reason="max_steps")))
    masked, whole = (Batch.from_groups([group], GRPO(mask_truncated=m), version=0) for m in ("episode", "none"))
    for row in masked.rows:
        np.testing.assert_array_equal(row.advantages, whole.rows[row.row_id].advantages)
    assert masked.rows[0].advantages.max() > 0.5, "without the failure both would be 0"


def test_only_the_truncated_turn_of_a_branch_is_left_out() -> None:
    first = trajectory(np.arange(8), [(2, 5)], turns=(Turn(2, 5, finish_reason="length"),))
    second = trajectory(np.arange(9) + 50, [(3, 6)], turns=(Turn(3, 6),), branch=1)
    both = replace(rollout(0, 1.0), trajectories=(first, second))
    group = Group("g", "t", (both, rollout(1, 0.0)))
    assert trained(Batch.from_groups([group], GRPO(mask_truncated="turn"), version=0)) == {1: [3, 4, 5], 2: BOTH}
    assert trained(Batch.from_groups([group], GRPO(mask_truncated="episode"), version=0)) == {2: BOTH}


def test_shares_and_episodes_are_those_of_the_tokens_that_are_left() -> None:
    """A row's weight is that of the tokens it still trains; an episode without any is not counted."""
    cut = (Turn(2, 5), Turn(6, 8, finish_reason="length"))
    first = trajectory(np.arange(9), [(2, 5), (6, 8)], turns=cut)
    second = trajectory(np.arange(9) + 50, [(3, 4)], turns=(Turn(3, 4),), branch=1)
    both = replace(rollout(0, 1.0), trajectories=(first, second))
    group = Group("g", "t", (both, rollout(1, 0.0), rollout(2, 0.0, reason="max_steps")))
    shares = {}
    for level in ("none", "turn", "episode"):
        batch = Batch.from_groups([group], GRPO(mask_truncated=level), version=0)
        shares[level] = {row.row_id: row.share for row in batch.rows}
        assert batch.n_episodes == len({row.episode for row in batch.rows}) == (1 if level == "episode" else 3)
        assert sum(shares[level].values()) == pytest.approx(batch.n_episodes)
    assert shares["none"] == pytest.approx({0: 5 / 6, 1: 1 / 6, 2: 1.0, 3: 1.0})
    assert shares["turn"] == pytest.approx({0: 3 / 4, 1: 1 / 4, 2: 1.0, 3: 1.0})
    assert shares["episode"] == {2: 1.0}


def test_a_group_of_which_nothing_is_left_is_refilled() -> None:
    cut = Group("g", "t", (rollout(0, 1.0, reason="max_steps"), rollout(1, 0.0, "length")))
    half = Group("g", "t", (rollout(0, 1.0, reason="max_steps"), rollout(1, 0.0)))
    assert teaches(cut, GRPO()) and not teaches(cut, GRPO(mask_truncated="episode"))
    assert teaches(cut, GRPO(mask_truncated="turn")) and teaches(half, GRPO(mask_truncated="episode"))
    batch = Batch.from_groups([cut], GRPO(mask_truncated="episode"), version=0)
    assert len(batch) == batch.n_tokens == 0 and batch.statistics["zero_variance_groups"] == 1
