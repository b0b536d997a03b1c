"""Advantages and rewards against loops by definition, and against TRL's published lines. Tolerance 1e-6."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import DAPO, GRPO, RLOO, DrGRPO, PolicyGradient
from tau2_lightning.algorithm.advantages import normalised_advantages
from tau2_lightning.algorithm.rewards import (
    excess_length_penalty,
    overlong_penalty,
    scale_rewards,
    turn_advantages,
    turn_returns,
)
from tests.algorithm import oracles

rewards_and_groups = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 0.5, -2.0, 0.1, 1e3]), st.integers(0, 3)), min_size=1, max_size=24
)


@settings(max_examples=60, deadline=None)
@given(
    pairs=rewards_and_groups,
    mean=st.sampled_from(["group", "batch", "none"]),
    std=st.sampled_from(["group", "batch", "none"]),
    leave_one_out=st.booleans(),
    std_of=st.sampled_from(["centred", "rewards"]),
)
def test_normalisation_matches_the_loop(pairs, mean, std, leave_one_out, std_of) -> None:
    if std_of == "rewards" and mean not in ("group", std):
        return  # refused by PolicyGradient
    rewards, groups = [p[0] for p in pairs], [p[1] for p in pairs]
    got = normalised_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(groups),
        mean_level=mean,
        std_level=std,
        std_of=std_of,
        leave_one_out=leave_one_out,
        eps=1e-4,
    )
    want = oracles.advantages(rewards, groups, mean, std, leave_one_out, 1e-4, std_of)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(pairs=rewards_and_groups, seed=st.integers(0, 99))
def test_the_order_of_episodes_and_the_names_of_groups_do_not_matter(pairs, seed) -> None:
    rewards = torch.tensor([p[0] for p in pairs], dtype=torch.float64)
    groups = torch.tensor([p[1] for p in pairs])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(pairs)))
    a = normalised_advantages(rewards, groups)[order]
    b = normalised_advantages(rewards[order], 1000 - 7 * groups[order])
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algorithm", [GRPO(), DrGRPO(), RLOO(), DAPO()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -0.3, 1 / 3])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 16])
def test_a_group_with_equal_rewards_has_exactly_zero_advantage(algorithm, value, size) -> None:
    """The advantage is zero, not a rounding error divided by eps."""
    rewards = torch.full((size,), value, dtype=torch.float64)
    advantages = algorithm.advantages(rewards, torch.zeros(size, dtype=torch.int64), torch.ones(size))
    assert (advantages == 0).all()


def test_group_statistics_never_mix_groups() -> None:
    """With statistics of the batch, the rewards of one group would change the advantages of the other."""
    rewards = torch.tensor([0.0, 1.0, 100.0, 101.0], dtype=torch.float64)
    groups = torch.tensor([5, 5, 9, 9])
    a = GRPO().advantages(rewards, groups, torch.ones(4))
    torch.testing.assert_close(a[:2], a[2:])


def test_group_and_batch_is_reinforce_plus_plus_baseline() -> None:
    """arXiv:2501.03262: rewards minus the group's mean, divided by the batch's std of these differences."""
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    groups = torch.tensor([0] * 4 + [1] * 4)
    centred = rewards - torch.tensor([0.75] * 4 + [0.25] * 4)
    expected = (centred - centred.mean()) / (centred.std() + 1e-4)
    torch.testing.assert_close(GRPO(std_level="batch").advantages(rewards, groups, torch.ones(8)), expected)
    raw = GRPO(std_level="batch", std_of="rewards").advantages(rewards, groups, torch.ones(8))
    torch.testing.assert_close(raw, centred / (rewards.std() + 1e-4))
    assert float((expected - raw).abs().max()) > 0.1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_never_reaches_an_advantage(wrong) -> None:
    with pytest.raises(ValueError, match=r"reward of episode 1 is .*only finite"):
        GRPO().credit([[0.0]] * 3, range(3), [1.0, wrong, 0.0], [0] * 3, [1] * 3)
    with pytest.raises(ValueError, match=r"row 2: the reward of turn 1 is"):
        GRPO().credit([[0.0], [0.0], [0.0, wrong]], range(3), [1.0, 0.0, 0.0], [0] * 3, [1] * 3)
    with pytest.raises(ValueError, match="reward of episode 0"):
        GRPO().teaches([wrong, 1.0], [1, 1])

    class Careless(GRPO):
        def advantages(self, rewards, group_ids, lengths):
            return rewards * wrong

    with pytest.raises(ValueError, match="advantage of episode 0"):
        Careless().credit([[0.0]], [0], [1.0], [0], [1])


def test_scale_rewards_follows_areal() -> None:
    got = scale_rewards(torch.tensor([0.0, 1.0, 5.0]), bias=-0.5, scaling=10.0, clip=20.0)
    assert got.tolist() == [-5.0, 5.0, 20.0]


@given(length=st.integers(0, 5000), limit=st.integers(1, 4000), buffer=st.integers(1, 4000))
def test_overlong_penalty_matches_dapo_eq_13(length, limit, buffer) -> None:
    buffer = min(buffer, limit)
    expected = limit - buffer
    want = 0.0 if length <= expected else (-1.0 if length > limit else (expected - length) / buffer)
    got = float(overlong_penalty(torch.tensor([length]), max_length=limit, buffer=buffer, factor=2.0))
    assert got == pytest.approx(2 * want, abs=1e-6)


def test_who_pays_for_length() -> None:
    """Each group has its own shortest solved episode; failures and the shortest pay nothing, none above the cap."""
    rewards, lengths, groups = [1.0, 1.0, 0.0, -0.5, 1.0, 0.5], [5, 8, 30, 30, 20, 40], [0, 0, 0, 0, 1, 1]
    algorithm = GRPO(excess_length_price=0.1, excess_length_cap=0.4)
    credit = algorithm.credit([[0.0]] * 6, range(6), rewards, groups, lengths)
    assert credit.rewards.tolist() == pytest.approx([1.0, 0.7, 0.0, -0.5, 1.0, 0.1])


@given(
    episodes=st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.integers(0, 3)), max_size=12),
    price=st.floats(0.001, 0.1),
    cap=st.floats(0.1, 1.0),
)
def test_excess_length_is_paid_against_the_shortest_solved_of_the_group(episodes, price, cap) -> None:
    lengths, solved, groups = ([episode[i] for episode in episodes] for i in range(3))
    got = excess_length_penalty(
        torch.tensor(lengths, dtype=torch.int64), torch.tensor(solved, dtype=torch.bool),
        torch.tensor(groups, dtype=torch.int64), price=price, cap=cap,
    )  # fmt: skip
    for at, (length, good, group) in enumerate(episodes):
        shortest = min((n for n, g, other in episodes if g and other == group), default=length)
        assert float(got[at]) == pytest.approx(-min(cap, price * (length - shortest)) if good else 0.0)


@given(rewards=st.lists(st.floats(-2, 2), max_size=8), discount=st.floats(0, 1))
def test_turn_returns_match_the_definition(rewards, discount) -> None:
    got = turn_returns(torch.tensor(rewards, dtype=torch.float64), discount)
    want = [sum(discount ** (k - i) * rewards[k] for k in range(i, len(rewards))) for i in range(len(rewards))]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-9)


@given(n=st.integers(1, 9), advantage=st.floats(-3, 3), outcome=st.floats(-2, 2), discount=st.floats(0, 1))
def test_with_only_an_outcome_turns_share_its_discounted_advantage(n, advantage, outcome, discount) -> None:
    rewards = torch.zeros(n, dtype=torch.float64)
    rewards[-1] = outcome
    got = turn_advantages(rewards, torch.tensor(advantage), torch.tensor(0.37), discount)
    np.testing.assert_allclose(got.numpy(), [advantage * discount ** (n - 1 - i) for i in range(n)], atol=1e-6)


@given(rewards=st.lists(st.floats(-2, 2), min_size=1, max_size=8), baseline=st.floats(-1, 1), scale=st.floats(0.1, 2))
def test_without_discount_turn_advantages_are_what_is_still_to_be_earned(rewards, baseline, scale) -> None:
    total = math.fsum(rewards)
    got = turn_advantages(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor((total - baseline) / scale, dtype=torch.float64),
        torch.tensor(scale, dtype=torch.float64),
        1.0,
    )
    want = [(math.fsum(rewards[i:]) - baseline) / scale for i in range(len(rewards))]
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


def test_credit_reaches_the_malformed_turn_and_those_before_it() -> None:
    """Two episodes, one with a penalty at its middle turn: its later turns are not penalised."""
    algorithm = DrGRPO()
    credit = algorithm.credit([[0.0, -0.5, 0.0], [0.0, 0.0]], [0, 1], [0.5, 0.0], [0, 0], [3, 2])
    assert credit.advantages.tolist() == pytest.approx([0.25, -0.25])
    assert credit.turn_advantages[0].tolist() == pytest.approx([0.25, 0.25, 0.75])
    assert credit.turn_advantages[1].tolist() == pytest.approx([-0.25, -0.25])


def test_a_group_without_variance_teaches_its_turns_nothing() -> None:
    credit = GRPO().credit([[-0.5, 0.0], [0.0, -0.5]], [0, 1], [-0.5, -0.5], [0, 0], [2, 2])
    assert all((turns == 0).all() for turns in credit.turn_advantages)


def test_a_users_own_advantages_are_a_hook_away() -> None:
    class Centred(PolicyGradient):
        def advantages(self, rewards, group_ids, lengths):
            return rewards - rewards.median()

    credit = Centred(turn_discount=0.5).credit([[0.0, 0.0], [0.0], [0.0]], [0, 1, 2], [3.0, 1.0, 0.0], [0] * 3, [1] * 3)
    assert credit.advantages.tolist() == [2.0, 0.0, -1.0]
    assert credit.turn_advantages[0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("algorithm", "rewards", "lengths", "teaches"),
    [
        (GRPO(), [0.0, 0.0, 0.0], [5, 6, 7], False),
        (GRPO(), [1.0, 1.0], [5, 6], False),
        (GRPO(), [0.0, 1.0], [5, 6], True),
        (GRPO(), [0.3, 0.1 + 0.2], [5, 6], False),  # a difference of one ulp is no signal
        (GRPO(turn_discount=0.5), [1.0, 1.0], [5, 6], False),  # a discount only scales an advantage
        (GRPO(), [0.0, -0.1], [5, 6], True),  # both failed, one also has a malformed call
        (GRPO(reward_clip=0.5), [1.0, 2.0], [5, 6], False),  # the clip removes the difference
        (GRPO(overlong_max_length=10, overlong_buffer=5), [1.0, 1.0], [4, 9], True),
        (GRPO(excess_length_price=0.1), [1.0, 1.0, 0.0], [5, 6, 9], True),
        (GRPO(excess_length_price=0.1), [1.0, 1.0], [5, 5], False),
        (GRPO(excess_length_price=0.1), [0.0, 0.0], [5, 9], False),
        (RLOO(), [1.0, 1.0], [5, 6], False),
        (DrGRPO(), [1.0, 0.0], [5, 6], True),
        (PolicyGradient(mean_level="none", std_level="none"), [1.0, 1.0], [5, 6], True),  # no baseline: all count
        (PolicyGradient(mean_level="none", std_level="none"), [0.0, 0.0], [5, 6], False),
        (PolicyGradient(mean_level="batch", std_level="batch"), [1.0, 1.0], [5, 6], True),  # other groups may differ
        (GRPO(), [], [], False),
    ],
)
def test_signal_is_what_the_algorithm_makes_of_the_rewards(algorithm, rewards, lengths, teaches) -> None:
    """The filter keeps a group if and only if one of its advantages is not zero."""
    assert algorithm.teaches(rewards, lengths) is teaches
    if rewards and algorithm.mean_level != "batch":
        alone = algorithm.credit([[0.0]] * len(rewards), range(len(rewards)), rewards, [0] * len(rewards), lengths)
        assert bool((alone.advantages.abs() > 1e-6).any()) is teaches
