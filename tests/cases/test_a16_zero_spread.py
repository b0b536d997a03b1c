"""A16: equal rewards never make a huge advantage, at any levels of mean and standard deviation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.algorithm.advantages import Level, centred, normalised_advantages

LEVELS = ("group", "batch", "none")
COMBINATIONS = [
    {"mean_level": mean, "std_level": std, "std_of": of, "leave_one_out": out}
    for mean, std, of, out in itertools.product(LEVELS, LEVELS, ("centred", "rewards"), (False, True))
    if of == "centred" or mean in ("group", std)
]
EPISODES = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 0.5, 0.1, -2.0, 1e3, 1e-9]), st.integers(0, 3)), min_size=1, max_size=20
)


def advantages(rewards: list[float], groups: list[int], **knobs) -> torch.Tensor:
    return normalised_advantages(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), **knobs)


@pytest.mark.parametrize(
    ("levels", "rewards", "groups", "expected"),
    [
        # Four ones, measured from 0: the sum of squares is 4, n - 1 = 3.
        ({"mean_level": "none", "std_level": "group"}, [1.0] * 4, [0] * 4, [1 / (math.sqrt(4 / 3) + 1e-4)] * 4),
        ({"mean_level": "none", "std_level": "batch"}, [1.0] * 4, [0, 0, 1, 1], [1 / (math.sqrt(4 / 3) + 1e-4)] * 4),
        # Rewards within a group are equal; the batch's mean is 5/8. A std about the group's mean would be 0 and make
        # the first advantage (1 - 5/8) / 1e-4 = 3,750.
        (
            {"mean_level": "batch", "std_level": "group"},
            [1.0] * 5 + [0.0] * 3,
            [0] * 5 + [1] * 3,
            [0.375 / (0.375 * math.sqrt(5 / 4) + 1e-4)] * 5 + [-0.625 / (0.625 * math.sqrt(3 / 2) + 1e-4)] * 3,
        ),
    ],
    ids=["none-group", "none-batch", "batch-group"],
)
def test_the_standard_deviation_is_about_the_mean_that_is_subtracted(levels, rewards, groups, expected) -> None:
    assert advantages(rewards, groups, **levels).tolist() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(episodes=EPISODES, eps=st.sampled_from([0.0, 1e-8, 1e-4]), unbiased=st.booleans())
@pytest.mark.parametrize("levels", COMBINATIONS, ids=lambda knobs: "-".join(str(value) for value in knobs.values()))
def test_no_combination_of_levels_explodes(levels, episodes, eps, unbiased) -> None:
    rewards, groups = [e[0] for e in episodes], [e[1] for e in episodes]
    got = advantages(rewards, groups, **levels, eps=eps, unbiased=unbiased)
    assert torch.isfinite(got).all()
    difference = centred(
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), levels["mean_level"], levels["leave_one_out"]
    )
    assert ((got == 0) == (difference == 0)).all(), "an advantage must be zero exactly where the reward equals the mean"
    if levels["std_level"] == "none":
        torch.testing.assert_close(got, difference)
        return
    size = [groups.count(g) if levels["std_level"] == "group" else len(groups) for g in groups]
    # A value is at most the root of the sum of squares. A leave-one-out mean is n / (n - 1) times as far away.
    factor = 2.0 if levels["leave_one_out"] and levels["std_of"] == "rewards" else 1.0
    bounds = [factor * math.sqrt(max(n - unbiased, 1)) + 1e-6 for n in size]
    assert all(abs(a) <= bound for a, bound in zip(got.tolist(), bounds, strict=True))


@settings(max_examples=60, deadline=None)
@given(rewards=st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.1]), min_size=1, max_size=8), discount=st.floats(0, 1))
@pytest.mark.parametrize("levels", COMBINATIONS, ids=lambda knobs: "-".join(str(value) for value in knobs.values()))
def test_the_filter_agrees_with_the_advantages(levels, rewards, discount) -> None:
    algorithm = PolicyGradient(**levels, turn_discount=discount)
    n = len(rewards)
    credit = algorithm.credit([[0.5, -0.5]] * n, range(n), rewards, [0] * n, [2] * n)
    teaches = algorithm.teaches(rewards, [2] * n)
    if algorithm.mean_level != "batch":  # with a batch mean, other groups move the baseline
        assert teaches == bool(credit.advantages.any())
    if not credit.advantages.any():
        assert not any(turns.any() for turns in credit.turn_advantages), "a group without signal has turn advantages"
    largest = max(float(turns.abs().max()) for turns in credit.turn_advantages)
    assert largest <= (1e4 if levels["std_level"] == "none" else 10 * math.sqrt(n) + 10) or min(rewards) != max(rewards)


def test_a_spread_that_can_be_zero_is_refused() -> None:
    refused: list[tuple[Level, Level]] = [("none", "group"), ("none", "batch"), ("batch", "group")]
    for mean, std in refused:
        with pytest.raises(ValueError, match="std_of"):
            PolicyGradient(mean_level=mean, std_level=std, std_of="rewards")


def test_the_old_formula_would_be_noticed() -> None:
    """Negative control: dividing by the std about the group's own mean breaks the bound."""
    rewards = torch.ones(4, dtype=torch.float64)
    assert float((rewards / (rewards.std() + 1e-4))[0]) == pytest.approx(1e4)
    assert float(advantages([1.0] * 4, [0] * 4, mean_level="none", std_level="group")[0]) < 1
