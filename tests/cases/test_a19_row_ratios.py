"""A19: the ratio of a row is aggregated first and clamped afterwards, and gradients stay finite."""

from __future__ import annotations

import math

import pytest
import torch

from tau2_lightning.algorithm import GMPO, GSPO, PolicyGradient
from tau2_lightning.algorithm.off_policy import at_level, behaviour_weights
from tau2_lightning.algorithm.ratios import log_difference
from tests.algorithm.configured import NAMES, configured

TOKENS = 200


def row(one: float) -> dict[str, torch.Tensor]:
    """A row of 200 trained tokens: one has log-ratio ``one``, all others have ratio 1."""
    behaviour = torch.full((1, TOKENS), -1.0, dtype=torch.float64)
    logprobs = behaviour.clone()
    logprobs[0, 7] += min(one, 0.0)
    behaviour[0, 7] -= max(one, 0.0)
    return {
        "logprobs": logprobs,
        "behaviour_logprobs": behaviour,
        "reference_logprobs": behaviour.clone(),
        "chosen": (torch.arange(TOKENS) == 7).double()[None],
        "advantages": torch.full_like(behaviour, -2.0),
        "loss_mask": torch.ones_like(behaviour, dtype=torch.bool),
        "versions": torch.zeros(1, TOKENS, dtype=torch.int32),
        "version": torch.tensor(0, dtype=torch.int32),
        "n_tokens": torch.tensor(float(TOKENS), dtype=torch.float64),
        "n_rows": torch.tensor(1.0, dtype=torch.float64),
    }


def loss_and_gradient(algorithm: PolicyGradient, mb: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    logprobs = mb["logprobs"].clone().requires_grad_()
    loss, metrics = algorithm.loss(logprobs, torch.zeros_like(logprobs), mb)
    loss.backward()
    assert logprobs.grad is not None and torch.isfinite(logprobs.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    return float(loss.detach()), logprobs.grad


UNCLIPPED = [GSPO(eps_clip=0.999999, eps_clip_higher=1e9), GMPO(eps_clip=1e9, eps_clip_higher=1e9)]


@pytest.mark.parametrize("algorithm", UNCLIPPED, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("one", [-30.0, -1000.0, 30.0, 1000.0])
def test_a_rows_ratio_is_the_mean_of_what_was_measured(algorithm: PolicyGradient, one: float) -> None:
    loss, gradient = loss_and_gradient(algorithm, row(one))
    ratio = math.exp(one / TOKENS)
    assert loss == pytest.approx(2.0 * ratio)
    # Every token's loss is 2 rho, and each token has 1/200 of the row's mean.
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2.0 * ratio / TOKENS))
    clamped_before = 2.0 * math.exp(math.copysign(20.0, one) / TOKENS)
    assert abs(loss - clamped_before) > 1e-2, "the token was clamped before the mean"


@pytest.mark.parametrize(("level", "share"), [("sequence", 1), ("geometric", TOKENS)])
@pytest.mark.parametrize("one", [-30.0, -1000.0, 30.0])
def test_weights_and_rejection_of_rows_clamp_the_row(level, share, one) -> None:
    mb = row(one)
    difference = log_difference(mb["logprobs"], mb["behaviour_logprobs"], mb["loss_mask"])
    value = at_level(difference, mb["loss_mask"], level)
    expected = max(-20.0, min(20.0, one / share))
    assert value.unique().tolist() == pytest.approx([expected])
    weights = behaviour_weights(mb["logprobs"], mb["behaviour_logprobs"], mb["loss_mask"], level=level, cap=1e12)
    assert float(weights.weight[0, 0]) == pytest.approx(math.exp(expected))


@pytest.mark.parametrize("algorithm", UNCLIPPED, ids=lambda one: type(one).__name__)
def test_two_far_tokens_that_cancel_leave_a_ratio_of_one(algorithm: PolicyGradient) -> None:
    mb = row(-1000.0)
    mb["behaviour_logprobs"][0, 8] -= 1000.0
    loss, _ = loss_and_gradient(algorithm, mb)
    assert loss == pytest.approx(2.0)


def test_gmpo_clips_a_token_before_the_mean_and_on_one_side_only() -> None:
    """With A < 0 the log-ratio of a token is at least -eps_clip and has no upper limit."""
    for one, counts in ((-1000.0, -0.4), (1000.0, 1000.0)):
        loss, gradient = loss_and_gradient(GMPO(), row(one))
        ratio = math.exp(counts / TOKENS)
        assert loss == pytest.approx(2.0 * ratio)
        assert float(gradient[0, 7]) == pytest.approx(0.0 if one < 0 else 2.0 * ratio / TOKENS)
        assert float(gradient[0, 0]) == pytest.approx(2.0 * ratio / TOKENS)


def test_the_largest_ratio_of_a_row_is_found_before_the_clamp() -> None:
    for one, rejected in ((1000.0, True), (30.0, True), (-1000.0, False)):
        mb = row(-one)  # the weight is pi / b
        weights = behaviour_weights(
            mb["behaviour_logprobs"], mb["logprobs"], mb["loss_mask"], rejection="max", rejection_upper=1e8
        )
        assert bool((~weights.kept).all()) is rejected and bool(weights.kept.any()) is not rejected


@pytest.mark.parametrize("one", [-1000.0, 1000.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_stays_finite_with_a_far_token(name: str, one: float) -> None:
    loss, gradient = loss_and_gradient(configured(name), row(one))
    assert math.isfinite(loss)
    assert gradient.any() or name == "gspo", "only GSPO's clip may give the whole row no gradient"


@pytest.mark.parametrize("value", [-math.inf, -1e30, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_impossible_token_gives_a_finite_gradient(value: float, dtype: torch.dtype) -> None:
    mb = {k: v.to(dtype) if v.is_floating_point() else v for k, v in row(0.0).items()}
    mb["logprobs"][0, 7] = value
    loss, gradient = loss_and_gradient(GSPO(eps_clip=0.999999, proximal="behaviour", importance_level="sequence"), mb)
    assert math.isfinite(loss) and gradient.abs().max() < 1
