"""Metrics of the loss: from sums over tokens to the numbers on a dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from .ratios import masked

#: What ``finalise`` returns -> its name on the dashboard (docs/metrics.md has each one's meaning and aliases).
NAMES = {
    "loss": "loss/mean",
    "policy_loss": "loss/policy",
    "kl_loss": "loss/kl",
    "entropy": "entropy/all/mean",
    "kl": "kl",
    "ratio": "ratio/mean",
    "max_ratio": "ratio/max",
    "ppo_kl": "actor/ppo_kl",
    "clip_low": "clip_ratio/low_mean",
    "clip_high": "clip_ratio/high_mean",
    "clip_region": "clip_ratio/region_mean",
    "clip_dual": "clip_ratio/dual_mean",
    "chosen": "clip_ratio/chosen_mean",
    "mismatch_kl": "mismatch_kl/all/mean",
    "logp_difference": "sampling/sampling_logp_difference/mean",
    "max_logp_difference": "sampling/sampling_logp_difference/max",
    "probs_difference": "training/rollout_probs_diff_mean",
    "max_probs_difference": "training/rollout_probs_diff_max",
    "importance_weight": "sampling/importance_sampling_ratio/mean",
    "max_importance_weight": "sampling/importance_sampling_ratio/max",
    "importance_capped": "sampling/importance_sampling_ratio/capped",
    "rejected": "off_policy/rejected",
    "staleness": "off_policy/mean",
    "max_staleness": "off_policy/max",
    "tokens": "tokens/trained",
    "rows": "rows/trained",
    "steps": "optim/steps",
}
LAG_NAMES = {
    "fraction": "off_policy/lag{lag}/fraction",
    "mismatch_kl": "off_policy/lag{lag}/mismatch_kl",
    "logp_difference": "off_policy/lag{lag}/logp_difference",
    "max_logp_difference": "off_policy/lag{lag}/logp_difference_max",
    "importance_weight": "off_policy/lag{lag}/importance_sampling_ratio",
    "clip_region": "off_policy/lag{lag}/clip_ratio",
}

#: Shares of a step's mean, already divided by its global counts: they add up to the sum over optimizer steps.
SHARES = frozenset({"loss", "policy_loss", "kl_loss"})
COUNTS = frozenset({"tokens", "rows", "steps"})


Value = TypeVar("Value", float, Tensor)


def common_metrics(ratio_logs: Tensor, entropy: Tensor, microbatch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of every loss, over the tokens of ``loss_mask``. ``ratio_logs`` [B, T] is each token's, 0 elsewhere."""
    mask = microbatch["loss_mask"]
    ratio = ratio_logs.detach().exp()
    return {
        "tokens": mask.sum(),
        "rows": mask.any(-1).sum(),
        "steps": mask.sum() / microbatch["n_tokens"].clamp(min=1),  # adds up to 1 over an optimizer step
        "entropy": masked(entropy.detach(), mask).sum(),
        "ratio": masked(ratio, mask).sum(),
        "max_ratio": masked(ratio, mask).amax(),
        "ppo_kl": -ratio_logs.detach().sum(),
    }


def merge(a: Mapping[str, Value], b: Mapping[str, Value]) -> dict[str, Value]:
    """Reduce two metric dicts (of numbers or scalar tensors): ``max_*`` by maximum, everything else by addition."""
    merged = dict(a)
    for name, value in b.items():
        if name not in merged:
            merged[name] = value
        else:
            merged[name] = max(merged[name], value) if name.startswith("max_") else merged[name] + value
    return merged


def finalise(sums: Mapping[str, float]) -> dict[str, float]:
    """Means from reduced sums: shares per optimizer step, counts and maxima as they are, the rest per trained token.

    ``*_lagK`` are per trained token of lag K, and left out where there is none; ``tokens_lagK`` becomes a fraction.
    """
    tokens = max(float(sums.get("tokens", 0.0)), 1.0)
    steps = float(sums.get("steps", 0.0)) or 1.0
    out: dict[str, float] = {}
    for name, value in sums.items():
        stem, _, lag = name.rpartition("_lag")
        if name in SHARES:
            out[name] = float(value) / steps
        elif stem == "tokens":
            out[f"fraction_lag{lag}"] = float(value) / tokens
        elif stem and lag.isdigit():
            count = float(sums[f"tokens_lag{lag}"])
            if count > 0:
                out[name] = float(value) if name.startswith("max_") else float(value) / count
        elif name in COUNTS or name.startswith("max_"):
            out[name] = float(value)
        else:
            out[name] = float(value) / tokens
    return out


def dashboard(means: Mapping[str, float]) -> dict[str, float]:
    """The result of ``finalise`` under the names of docs/metrics.md. Metrics of a user's own loss keep their names."""
    named: dict[str, float] = {}
    for name, value in means.items():
        stem, _, lag = name.rpartition("_lag")
        if stem in LAG_NAMES and lag.isdigit():
            named[LAG_NAMES[stem].format(lag=lag)] = value
        else:
            named[NAMES.get(name, name)] = value
    return named
