"""A15: a dropped token has no effect on training, not even through the ratio of its row."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tau2_lightning.algorithm import GMPO, GRPO, GSPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.microbatch import MicroBatch
from tests.algorithm.cases import loss_and_gradients, microbatches
from tests.algorithm.configured import NAMES, configured
from tests.batch.groups import group, loss_of, trajectory

WIDE: dict[str, Any] = {"eps_clip": 0.9, "eps_clip_higher": 9.0}  # nothing is clipped, so gradients are not 0
DROPS = st.sampled_from(
    [
        {"rejection": "token", "rejection_lower": 0.5, "rejection_upper": 2.0},
        {"rejection": "sequence", "rejection_lower": 0.5, "rejection_upper": 2.0},
        {"rejection": "geometric", "rejection_lower": 0.5, "rejection_upper": 2.0},
        {"proximal": "recompute", "importance_sampling": "mask", "behav_imp_weight_cap": 1.1},
        {"proximal": "recompute", "importance_sampling": "mask", "importance_level": "sequence",
         "behav_imp_weight_cap": 1.1, "rejection": "token", "rejection_upper": 1.5},
        {"proximal": "recompute", "importance_sampling": "mask", "behav_imp_weight_min": 0.9},
        *({"rejection": measure, "rejection_upper": 0.5} for measure in ("mean_k2", "mean_k3", "max_k2", "max_k3")),
        {"rejection": "max", "rejection_lower": 0.5, "rejection_upper": 2.0},
        {"proximal": "recompute", "rejection": "mean_k3", "rejection_upper": 0.1},
    ]
)  # fmt: skip


def one_rejected_token_a_row() -> tuple[MicroBatch, Tensor]:
    """Return two rows whose token 2 has ratio exp(2) and all other tokens about 1, and the trainer's log-probs."""
    rows = [trajectory([1, 2, 3, 4, 5, n], [(1, 6)]) for n in (6, 7)]
    (mb,) = Batch.from_groups([group((1.0, rows[0]), (0.0, rows[1]))], GRPO(), version=0).microbatches(100)
    logprobs = mb["behaviour_logprobs"].double() + 0.01 * torch.arange(6)
    logprobs[:, 2] += 2.0
    return mb, logprobs


def gradient(algorithm: PolicyGradient, mb: MicroBatch, logprobs: Tensor) -> Tensor:
    leaf = logprobs.clone().requires_grad_()
    loss, _ = loss_of(algorithm, leaf, torch.zeros_like(leaf), mb)
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def by_hand(mb: MicroBatch, logprobs: Tensor, dropped: int | None) -> np.ndarray:
    """The gradient of GSPO by its definition, in float64; GMPO's is the same where nothing is clipped. Ratios are over
    the kept tokens of a row, the loss is the mean over rows."""
    mask, advantages = mb["loss_mask"].tolist(), mb["advantages"].tolist()
    found = np.zeros(logprobs.shape)
    for i, row in enumerate(mask):
        on = [t for t, m in enumerate(row) if m]
        kept = [t for t in on if t != dropped]
        ratio = np.exp(np.mean([float(logprobs[i, t] - mb["behaviour_logprobs"][i, t].double()) for t in kept]))
        for t in kept:  # every kept token's loss is -A rho / n; each kept token u has a share 1 / len(kept) of rho
            for u in kept:
                found[i, u] += -advantages[i][t] * ratio / len(kept) / len(on) / len(mask)
    return found


@pytest.mark.parametrize("kind", [GSPO, GMPO], ids=lambda k: k.__name__)
def test_a_rejected_token_has_no_gradient_through_its_rows_ratio(kind) -> None:
    mb, logprobs = one_rejected_token_a_row()
    got = gradient(kind(**WIDE, rejection="token", rejection_upper=2.0), mb, logprobs)
    assert (got[:, 2] == 0).all() and (got[:, [0, 1, 3, 4]].abs() > 0.01).all()
    np.testing.assert_allclose(got.numpy(), by_hand(mb, logprobs, dropped=2), rtol=1e-6, atol=1e-9)
    everything = gradient(kind(**WIDE), mb, logprobs)  # control: without rejection the same token trains
    np.testing.assert_allclose(everything.numpy(), by_hand(mb, logprobs, dropped=None), rtol=1e-6, atol=1e-9)
    assert (everything[:, 2].abs() > 0.01).all()


@pytest.mark.parametrize("kind", [GSPO, GMPO], ids=lambda k: k.__name__)
def test_rejecting_a_token_is_as_if_it_had_not_been_sampled_by_the_policy(kind) -> None:
    """With a constant denominator, the loss is that of a row whose mask never had the token."""
    mb, logprobs = one_rejected_token_a_row()
    knobs: dict[str, Any] = {**WIDE, "aggregation": "constant_length", "constant_length": 10}
    rejecting = gradient(kind(**knobs, rejection="token", rejection_upper=2.0), mb, logprobs)
    mask = mb["loss_mask"].clone()
    mask[:, 2] = False
    without = gradient(kind(**knobs), cast("MicroBatch", {**mb, "loss_mask": mask}), logprobs)
    torch.testing.assert_close(rejecting, without, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(mb=microbatches(), drops=DROPS, kl=st.sampled_from([0.0, 0.1]))
def test_no_algorithm_trains_a_rejected_token(name, mb, drops, kl) -> None:
    algorithm = dataclasses.replace(configured(name), **drops, kl_ctl=kl, entropy_coef=0.1)
    prox = mb["proximal_logprobs"] if algorithm.proximal == "recompute" else mb["behaviour_logprobs"]
    weights = algorithm.importance_weights(prox, mb["behaviour_logprobs"], mb["logprobs"], mb["loss_mask"])
    _, grad, grad_entropy, metrics = loss_and_gradients(algorithm, mb)
    assert (grad[~weights.kept] == 0).all() and (grad_entropy[~weights.kept] == 0).all()
    assert int(metrics["rejected"]) == int((mb["loss_mask"] & ~weights.kept).sum())
    if not kl or algorithm.kl_in == "reward":
        assert (grad[~weights.trained] == 0).all(), "a token with an importance weight of 0 has a gradient"


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_rejected_token_is_in_no_loss(name) -> None:
    """Neither in the loss of the token itself, nor in that of others through a ratio of the row or a penalty."""
    mb, logprobs = one_rejected_token_a_row()
    chosen = torch.zeros_like(mb["behaviour_logprobs"])
    chosen[0, 2] = chosen[1, 1] = 1.0
    mb = cast("MicroBatch", {**mb, "chosen": chosen, "reference_logprobs": mb["behaviour_logprobs"] - 0.1})
    further = logprobs.clone()
    further[:, 2] += 1.0
    plain = dataclasses.replace(configured(name), kl_in="reward")
    rejecting = dataclasses.replace(plain, rejection="token", rejection_upper=2.0)

    def loss(algorithm: PolicyGradient, values: Tensor) -> float:
        return float(loss_of(algorithm, values, torch.zeros_like(values), mb)[0])

    assert loss(rejecting, logprobs) == loss(rejecting, further)
    torch.testing.assert_close(gradient(rejecting, mb, logprobs), gradient(rejecting, mb, further), rtol=0, atol=0)
    assert loss(plain, logprobs) != loss(plain, further), "control: without rejection the value must change the loss"


def test_a_dropped_token_counts_as_rejected_and_not_as_clipped() -> None:
    mb, logprobs = one_rejected_token_a_row()
    algorithm = GRPO(rejection="token", rejection_upper=2.0)
    _, metrics = loss_of(algorithm, logprobs, torch.zeros_like(logprobs), mb)
    assert metrics["rejected"] == 2 and metrics["clip_high"] == 0
    _, without = loss_of(GRPO(), logprobs, torch.zeros_like(logprobs), mb)
    assert without["rejected"] == 0 and without["clip_high"] == 1  # the row with a positive advantage


def test_the_weight_of_a_row_is_that_of_its_kept_tokens() -> None:
    mb, proximal = one_rejected_token_a_row()
    algorithm = GRPO(proximal="recompute", importance_level="sequence", rejection="token", rejection_upper=2.0)
    weights = algorithm.importance_weights(proximal, mb["behaviour_logprobs"], proximal, mb["loss_mask"])
    torch.testing.assert_close(weights.weight[0, 0], torch.tensor(0.01 * (1 + 3 + 4), dtype=torch.float64).exp())
    whole = dataclasses.replace(algorithm, rejection="none")
    control = whole.importance_weights(proximal, mb["behaviour_logprobs"], proximal, mb["loss_mask"])
    assert float(control.weight[0, 0]) == 5.0, "control: the ratio exp(2) of token 2 takes the weight to the cap"
