"""A19: the ratio of a row is aggregated first and clamped then, and gradients stay finite."""

from __future__ import annotations

import math

import pytest
import torch

from tau2_lightning.algorithm import GSPO, PolicyGradient
from tau2_lightning.algorithm.off_policy import at_level, behaviour_weights
from tau2_lightning.algorithm.ratios import log_difference

TOKENS = 200


def row(one: float) -> dict[str, torch.Tensor]:
    """A row of 200 trained tokens with ratio 1, but one with log-ratio ``one``."""
    behaviour = torch.full((1, TOKENS), -1.0, dtype=torch.float64)
    logprobs = behaviour.clone()
    logprobs[0, 7] += min(one, 0.0)
    behaviour[0, 7] -= max(one, 0.0)
    return {
        "logprobs": logprobs,
        "behaviour_logprobs": behaviour,
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


@pytest.mark.parametrize("one", [-30.0, -1000.0, 30.0, 1000.0])
def test_gspo_takes_the_mean_of_what_was_measured(one: float) -> None:
    loss, gradient = loss_and_gradient(GSPO(eps_clip=0.999999, eps_clip_higher=1e9), row(one))
    ratio = math.exp(one / TOKENS)
    assert loss == pytest.approx(2.0 * ratio)
    # Every token's loss is 2 rho, and each token has 1/200 of the row's mean.
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2.0 * ratio / TOKENS))
    clamped_before = 2.0 * math.exp(math.copysign(20.0, one) / TOKENS)
    assert abs(loss - clamped_before) > 1e-2, "a clamp of the token would show"


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


def test_two_far_tokens_that_cancel_leave_a_ratio_of_one() -> None:
    mb = row(-1000.0)
    mb["behaviour_logprobs"][0, 8] -= 1000.0
    loss, _ = loss_and_gradient(GSPO(), mb)
    assert loss == pytest.approx(2.0)


@pytest.mark.parametrize("value", [-math.inf, -1e30, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_impossible_token_gives_a_finite_gradient(value: float, dtype: torch.dtype) -> None:
    mb = {k: v.to(dtype) if v.is_floating_point() else v for k, v in row(0.0).items()}
    mb["logprobs"][0, 7] = value
    loss, gradient = loss_and_gradient(GSPO(eps_clip=0.999999, proximal="behaviour", importance_level="sequence"), mb)
    assert math.isfinite(loss) and gradient.abs().max() < 1
