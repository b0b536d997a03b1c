"""Corrections for tokens that another policy sampled: older weights, or the same weights in another engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from .divergences import DIVERGENCES
from .ratios import (
    LOG_ZERO,
    bounded,
    finite_logprobs,
    log_difference,
    log_ratio,
    masked,
    sequence_mean,
    sequence_sum,
)

Proximal = Literal["behaviour", "recompute", "interpolate"]
Correction = Literal["none", "truncate", "mask"]
Level = Literal["token", "sequence", "geometric"]
Rejection = Literal["none", "token", "sequence", "geometric", "max", "mean_k2", "mean_k3", "max_k2", "max_k3"]


@dataclass(frozen=True)
class Weights:
    """``weight`` [B, T] multiplies each token's loss, without gradient; ``ratio`` [B, T] is the weight before caps and
    rejection. ``kept`` [B, T] bool: not rejected. ``metrics``: [B, T] each.
    """

    weight: Tensor
    ratio: Tensor
    kept: Tensor
    metrics: dict[str, Tensor]

    @property
    def trained(self) -> Tensor:
        """[B, T] bool: the tokens of the policy loss, neither rejected nor masked by a weight of 0."""
        return self.kept & (self.weight != 0)


def interpolated_proximal(logprobs: Tensor, behaviour: Tensor, versions: Tensor, version: Tensor) -> Tensor:
    """Proximal log-probs estimated from weight versions, without a forward pass. [B, T], no gradient.

    ``log prox = log b + alpha (log pi - log b)`` with ``alpha = (v - 1 - v_b) / (v - v_b)`` for the trainer at version
    v (AReaL, prox_logp_method=loglinear). Tokens sampled by v or v - 1 have alpha 0: the behaviour policy is proximal.
    """
    lag = (version - versions).to(behaviour.dtype)
    alpha = torch.where(lag > 0, (lag - 1) / lag.clamp(min=1), torch.zeros_like(lag))
    behaviour = behaviour.clamp(min=LOG_ZERO)  # log 0 - log 0 must not become nan
    return behaviour + alpha * (logprobs.detach().clamp(min=LOG_ZERO) - behaviour)


def at_level(log_weights: Tensor, mask: Tensor, level: Level) -> Tensor:
    """Log importance weight of each token, of its row (sum), or of its row per token (mean), bounded after that.

    [B, T] -> [B, T].
    """
    if level == "sequence":
        return bounded(sequence_sum(log_weights, mask))
    return bounded(sequence_mean(log_weights, mask) if level == "geometric" else log_weights)


def behaviour_weights(
    proximal: Tensor,
    behaviour: Tensor,
    mask: Tensor,
    *,
    correction: Correction = "truncate",
    level: Level = "token",
    floor: float = 0.0,
    cap: float = 5.0,
    rejection: Rejection = "none",
    rejection_lower: float = 0.0,
    rejection_upper: float = 5.0,
) -> Weights:
    """``w = pi_prox / pi_behaviour``, clamped to ``[floor, cap]`` or set to 0 outside it; rows or tokens are rejected.

    Truncated importance sampling (TIS) and masked (MIS): Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"; decoupled PPO's weight: arXiv:2110.00641. Rejection drops whatever has a ratio
    at its level, or every row that has a measure (`divergences`), outside ``[rejection_lower, rejection_upper]``; the
    weight of a row is that of its kept tokens. Denominators are untouched: a dropped token adds 0.
    """
    difference = log_difference(proximal.detach(), behaviour, mask)
    kept = mask
    if rejection != "none":
        measure = DIVERGENCES.get(rejection)
        judged = measure(difference, mask) if measure else at_level(difference, mask, cast("Level", rejection)).exp()
        kept = mask & (judged >= rejection_lower) & (judged <= rejection_upper)
    ratio = at_level(difference, mask, level).exp()
    weight = at_level(difference, kept, level).exp()
    capped = kept & ((weight > cap) | (weight < floor))
    if correction == "none":
        weight = torch.ones_like(ratio)
    elif correction == "truncate":
        weight = weight.clamp(floor, cap)
    else:
        weight = masked(weight, ~capped)
    return Weights(masked(weight, kept), ratio, kept, {"importance_capped": capped, "rejected": mask & ~kept})


#: Staleness is reported for lags 0, 1, 2, 3 and "4 and more": a fixed set, so that every rank sums the same keys.
LAGS = (0, 1, 2, 3, 4)


#: Metrics that are also reported by staleness, and those reported as maxima.
BY_LAG = ("mismatch_kl", "logp_difference", "importance_weight", "clip_region")
MAXIMA = ("logp_difference", "probs_difference", "importance_weight")
MAXIMA_BY_LAG = ("logp_difference",)


def mismatch_metrics(trainer: Tensor, behaviour: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Differences between the sampling and the learning policy, by token. [B, T] each, 0 outside ``mask``.

    ``mismatch_kl`` is k3 of KL(behaviour || trainer) on behaviour's samples, ``exp(d) - 1 - d`` with
    d = log trainer - log behaviour.
    """
    d = log_ratio(trainer.detach(), behaviour, mask)
    probs = finite_logprobs(trainer.detach(), mask).exp() - finite_logprobs(behaviour, mask).exp()
    return {"logp_difference": d.abs(), "mismatch_kl": d.exp() - 1 - d, "probs_difference": probs.abs()}


def reduced(by_token: Mapping[str, Tensor], mask: Tensor, lag: Tensor) -> dict[str, Tensor]:
    """Sums of [B, T] metrics over the trained tokens, maxima of some (``max_*``), and both by staleness (``*_lagK``).

    ``lag`` [B, T] int is the trainer's version less the token's. Scalars are passed on: sums, or maxima when their name
    starts with ``max_``.
    """
    whole = {name: value for name, value in by_token.items() if value.dim() == 0}
    tokens = {name: masked(value.detach().float(), mask) for name, value in by_token.items() if value.dim()}
    tokens["staleness"] = masked(lag.clamp(min=0).float(), mask)
    out = whole | {name: value.sum() for name, value in tokens.items()}
    out |= {f"max_{name}": tokens[name].amax() for name in MAXIMA if name in tokens}
    out["max_staleness"] = masked(lag.float(), mask).amax()
    for k in LAGS:
        here = mask & (lag.clamp(0, LAGS[-1]) == k)
        out[f"tokens_lag{k}"] = here.sum()
        out |= {f"{name}_lag{k}": masked(tokens[name], here).sum() for name in BY_LAG if name in tokens}
        out |= {f"max_{name}_lag{k}": masked(tokens[name], here).amax() for name in MAXIMA_BY_LAG if name in tokens}
    return out
