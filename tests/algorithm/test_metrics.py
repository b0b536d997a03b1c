"""Sums become means over micro-batches, ranks and the optimizer steps of one batch."""

from __future__ import annotations

import pytest
import torch

from tau2_lightning.algorithm import GRPO, dashboard, finalise, merge
from tests.algorithm.cases import loss_and_gradients
from tests.algorithm.test_losses import ordinary_microbatch


def test_merge_adds_and_takes_maxima_of_numbers_and_tensors() -> None:
    assert merge({"a": 1.0, "max_b": 2.0}, {"a": 2.0, "max_b": 1.0, "c": 5.0}) == {"a": 3.0, "max_b": 2.0, "c": 5.0}
    merged = merge({"a": torch.tensor(1), "max_b": torch.tensor(-3)}, {"a": torch.tensor(2), "max_b": torch.tensor(-1)})
    assert merged["a"] == 3 and merged["max_b"] == -1


def test_means_are_over_tokens_and_optimizer_steps() -> None:
    totals: dict[str, float] = {}
    losses, entropies, tokens = [], 0.0, 0
    for seed in (1, 2):  # two optimizer steps, the second in two micro-batches
        mb = ordinary_microbatch(seed=seed)
        losses.append(float(loss_and_gradients(GRPO(), mb)[0]))
        entropies += float(mb["entropy"][mb["loss_mask"]].sum())
        tokens += int(mb["loss_mask"].sum())
        for rows in (slice(0, 2), slice(2, 4)) if seed == 2 else (slice(0, 4),):
            part = {k: v[rows] if v.dim() else v for k, v in mb.items()}
            sums = loss_and_gradients(GRPO(), part)[3]
            totals = merge(totals, {k: float(v) for k, v in sums.items()})
    means = finalise(totals)
    assert means["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert means["entropy"] == pytest.approx(entropies / tokens, rel=1e-5)
    assert means["steps"] == pytest.approx(2) and means["tokens"] == tokens
    assert sum(means[f"fraction_lag{k}"] for k in range(5)) == pytest.approx(1)


def test_mismatch_is_reported_by_staleness() -> None:
    mb = ordinary_microbatch()
    mb["versions"] = torch.where(torch.arange(9) < 4, 4, 1).expand(4, 9).to(torch.int32)  # lags 0 and 3
    d = torch.where(mb["versions"] == 1, 0.5, 0.0)
    mb["logprobs"] = mb["behaviour_logprobs"] + d
    means = finalise({k: float(v) for k, v in loss_and_gradients(GRPO(), mb)[3].items()})
    assert means["logp_difference_lag0"] == 0 and means["logp_difference_lag3"] == pytest.approx(0.5)
    assert means["mismatch_kl_lag3"] == pytest.approx(torch.tensor(0.5).exp().item() - 1.5, rel=1e-5)
    assert not [name for name in means if name.endswith("_lag1") and name != "fraction_lag1"], "no token has lag 1"
    assert means["importance_weight_lag0"] == 1 and means["importance_weight_lag3"] == pytest.approx(2.718281828**0.5)
    assert means["max_logp_difference_lag0"] == 0 and means["max_logp_difference_lag3"] == pytest.approx(0.5)
    # exp(.5) is above the upper bound, so that tokens with a positive advantage are clipped.
    stale = mb["loss_mask"] & (mb["versions"] == 1)
    assert means["clip_region_lag0"] == 0
    assert means["clip_region_lag3"] == pytest.approx(float((mb["advantages"] > 0)[stale].double().mean()))
    assert means["max_staleness"] == 3 and means["max_logp_difference"] == pytest.approx(0.5)
    named = dashboard(means)
    assert named["off_policy/lag3/logp_difference"] == means["logp_difference_lag3"]
    assert named["off_policy/lag3/clip_ratio"] == means["clip_region_lag3"]
    assert named["mismatch_kl/all/mean"] == means["mismatch_kl"]
    assert dashboard({"my_own": 1.0}) == {"my_own": 1.0}
