"""Normalisation of token advantages over a batch: against loops, and independent of what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO, AdvNorm, PolicyGradient, ReinforcePP, ReinforcePPBaseline
from tau2_lightning.algorithm.kl import kl_estimate, kl_to_go, kl_to_go_by_row
from tests.algorithm import oracles

LEVELS = ["group", "batch", "none"]
tokens = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 0.5, -2.0, 0.1, 1e3]), st.integers(0, 3)), min_size=1, max_size=40
)


@settings(max_examples=100, deadline=None)
@given(
    pairs=tokens, mean=st.sampled_from(LEVELS), std=st.sampled_from(LEVELS), unbiased=st.booleans(),
    eps=st.sampled_from([1e-5, 0.1]),
)  # fmt: skip
def test_normalisation_matches_the_loop(pairs, mean, std, unbiased, eps) -> None:
    values, groups = [p[0] for p in pairs], [p[1] for p in pairs]
    norm = AdvNorm(mean_level=mean, std_level=std, unbiased=unbiased, eps=eps)
    got = norm(torch.tensor(values, dtype=torch.float64), torch.tensor(groups))
    want = oracles.normalised_tokens(values, groups, mean, std, unbiased, eps)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-6)
    assert norm.active is ((mean, std) != ("none", "none"))


def test_the_batchs_tokens_have_mean_0_and_std_1_and_long_episodes_weigh_more() -> None:
    advantages = torch.tensor([1.0] * 6 + [-1.0] * 2, dtype=torch.float64)
    got = AdvNorm(mean_level="batch", std_level="batch", eps=1e-12)(advantages, torch.zeros(8, dtype=torch.int64))
    assert got.mean() == pytest.approx(0, abs=1e-12) and got.std() == pytest.approx(1)
    assert got[-1] == pytest.approx(-3 * got[0].item()), "six tokens of +1 against two of -1"


@pytest.mark.parametrize("mean", LEVELS)
@pytest.mark.parametrize("std", LEVELS)
def test_equal_advantages_never_explode(mean, std) -> None:
    advantages = torch.full((9,), 0.1, dtype=torch.float64)
    got = AdvNorm(mean_level=mean, std_level=std)(advantages, torch.arange(9) // 3)
    assert got.abs().max() <= 1.1
    if mean != "none":
        assert (got == 0).all(), "a rounding error was divided by eps"


def test_std_unbiased_of_episodes_is_a_key() -> None:
    rewards, groups = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    bessel, plain = (GRPO(unbiased=flag, norm_eps=1e-12).advantages(rewards, groups, groups) for flag in (True, False))
    torch.testing.assert_close(plain, torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(bessel, plain * (3 / 4) ** 0.5)
    credit = GRPO(unbiased=False, norm_eps=1e-12).credit([[0.5, 0.0]] * 2, [0, 1], [1.0, 0.0], [0, 0], [2, 2])
    assert credit.turn_advantages[0].tolist() == pytest.approx([1.0, 0.0]), "turns are scaled by the same std"


def test_kl_to_go_of_rows_that_stand_one_after_the_other() -> None:
    g = torch.Generator().manual_seed(1)
    grid = torch.randn(5, 7, generator=g, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=g) < 0.6
    mask[2] = False
    rows = torch.arange(5)[:, None].expand(5, 7)[mask]
    torch.testing.assert_close(kl_to_go_by_row(grid[mask], rows), kl_to_go(grid, mask)[mask])


def given_tokens(seed: int = 0, n: int = 40) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, generator=g, dtype=torch.float64)  # noqa: E731
    rows = torch.arange(n) // 10
    return {
        "advantages": draw(), "behaviour_logprobs": -draw().abs(), "proximal_logprobs": -draw().abs(),
        "reference_logprobs": -draw().abs(), "row_ids": rows, "groups": rows // 2, "positions": torch.arange(n) % 10,
    }  # fmt: skip


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("sampled", ["behaviour_logprobs", "proximal_logprobs"])
def test_reinforce_pp_normalises_after_the_kl_penalty(estimator, sampled) -> None:
    """The reward's KL is that of the policy before the step, and mean and std include it."""
    tokens = given_tokens()
    if sampled == "behaviour_logprobs":
        del tokens["proximal_logprobs"]
    algorithm = ReinforcePP(kl_ctl=0.3, kl_estimator=estimator)
    assert algorithm.finishes_late and algorithm.needs_reference
    values = []
    for i in range(40):
        rest = [j for j in range(i, 40) if tokens["row_ids"][j] == tokens["row_ids"][i]]
        kls = [oracles.kl(float(tokens[sampled][j] - tokens["reference_logprobs"][j]), 1.0, estimator)[0] for j in rest]
        values.append(float(tokens["advantages"][i]) - 0.3 * sum(kls))
    want = oracles.normalised_tokens(values, [0] * 40, "batch", "batch", True, 1e-5)
    got = algorithm.finish(tokens, 3)
    assert set(got) == {"advantages"}
    np.testing.assert_allclose(got["advantages"].numpy(), want, rtol=1e-9, atol=1e-9)
    after = AdvNorm(mean_level="batch", std_level="batch")(tokens["advantages"], tokens["groups"])
    assert not torch.allclose(got["advantages"], after), "the penalty is part of what is normalised"


def test_the_loss_subtracts_no_kl_a_second_time() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    column = torch.zeros(1, 3)
    mb = {"advantages": torch.ones(1, 3), "loss_mask": mask, "behaviour_logprobs": column,
          "reference_logprobs": column - 1}  # fmt: skip
    assert torch.equal(ReinforcePP(kl_ctl=0.5).kl_shaped_advantages(mb), mb["advantages"])
    plain = PolicyGradient(kl_ctl=0.5, kl_in="reward", kl_estimator="k1").kl_shaped_advantages(mb)
    assert plain.tolist() == [[-0.5, 0.0, 0.5]]
    torch.testing.assert_close(
        plain, mb["advantages"] - 0.5 * kl_to_go(kl_estimate(column, column - 1, mask, "k1"), mask)
    )


@pytest.mark.parametrize(
    ("algorithm", "rewards", "teaches"),
    [
        (ReinforcePP(), [0.0, 0.0], True),  # the batch's mean decides, as with mean_level=batch
        (ReinforcePP(), [1.0, 1.0], True),
        (ReinforcePPBaseline(), [1.0, 1.0], False),  # all 0 over its own baseline; the batch's mean does not count
        (ReinforcePPBaseline(), [0.0, 1.0], True),
        (GRPO(adv_norm=AdvNorm(std_level="batch")), [1.0, 1.0], False),
        (PolicyGradient(mean_level="none", std_level="none", adv_norm=AdvNorm(mean_level="group")), [1.0, 1.0], False),
        (PolicyGradient(mean_level="none", std_level="none", adv_norm=AdvNorm(mean_level="group")), [1.0, 0.0], True),
        (PolicyGradient(mean_level="none", std_level="none", adv_norm=AdvNorm(mean_level="group")), [], False),
    ],
)
def test_the_group_filter_knows_the_normalisation(algorithm, rewards, teaches) -> None:
    assert algorithm.teaches(rewards, [5] * len(rewards)) is teaches


def test_reinforce_pp_baseline_is_group_and_batch_where_episodes_are_equally_long() -> None:
    """One value per episode (group/batch) and one per token differ only by the weight of long episodes."""
    rewards, groups = torch.tensor([1.0, 0.0, 0.25, 1.0, 0.5, 0.5], dtype=torch.float64), torch.arange(6) // 2
    by_episode = GRPO(std_level="batch", unbiased=False, norm_eps=1e-5)
    by_token = ReinforcePPBaseline(adv_norm=AdvNorm(mean_level="batch", std_level="batch", unbiased=False))
    for lengths in ([4] * 6, [4, 9, 4, 4, 4, 4]):
        size = torch.tensor(lengths)
        tokens = {
            "advantages": by_token.advantages(rewards, groups, size).repeat_interleave(size),
            "groups": groups.repeat_interleave(size),
        }
        got = by_token.finish(tokens, 0)["advantages"]
        want = by_episode.advantages(rewards, groups, size).repeat_interleave(size)
        assert torch.allclose(got, want, rtol=1e-12, atol=0) is (len(set(lengths)) == 1)


def test_turns_of_an_episode_of_reward_0_are_credited_where_the_batch_has_the_baseline() -> None:
    """A group of totals 0 without its own baseline has a signal, because the batch's mean is subtracted later."""
    turns = [[0.5, -0.5]] * 2
    credit = ReinforcePP().credit(turns, [0, 1], [0.0, 0.0], [0, 0], [2, 2])
    assert credit.turn_advantages[0].tolist() == [0.0, -0.5]
    control = PolicyGradient(mean_level="none", std_level="none").credit(turns, [0, 1], [0.0, 0.0], [0, 0], [2, 2])
    assert control.turn_advantages[0].tolist() == [0.0, 0.0]
    by_group = PolicyGradient(mean_level="none", std_level="none", adv_norm=AdvNorm(mean_level="group"))
    credit = by_group.credit(turns * 2, [0, 1, 2, 3], [1.0, 1.0, 1.0, 0.0], [0, 0, 1, 1], [2] * 4)
    assert credit.advantages.tolist() == [0.0, 0.0, 1.0, 0.0], "equal totals of a group are no signal"
