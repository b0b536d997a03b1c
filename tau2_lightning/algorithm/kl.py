"""Estimators of the KL divergence to a reference policy, from log-probs of sampled tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .ratios import log_ratio, masked

Estimator = Literal["k1", "k2", "k3"]
Place = Literal["loss", "reward"]

#: Bound of one token's estimate: beyond it the token adds a constant and no gradient.
MAX_KL = 10.0


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Per-token estimate of KL(pi || ref), nats, clamped to +-10, 0 outside ``mask``. [B, T] -> [B, T].

    With d = log pi - log ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman 2020, "Approximating KL
    divergence").
    """
    d = log_ratio(logprobs, reference_logprobs, mask)
    if estimator == "k1":
        kl = d
    elif estimator == "k2":
        kl = d**2 / 2
    else:
        kl = (-d).exp() - 1 + d
    return masked(kl.clamp(-MAX_KL, MAX_KL), mask)


def kl_to_go(kl: Tensor, mask: Tensor) -> Tensor:
    """Sum of KL from each trained token on, itself included: the return of a KL reward. [B, T] -> [B, T].

    With token rewards ``-kl_ctl * KL_t`` and discount = gae_lambda = 1 (AReaL's defaults), a token's advantage is the
    outcome's advantage minus ``kl_ctl * kl_to_go``.
    """
    return masked(masked(kl, mask).flip(-1).cumsum(-1).flip(-1), mask)


def kl_to_go_by_row(kl: Tensor, row_ids: Tensor) -> Tensor:
    """``kl_to_go`` of trained tokens that stand row after row: [n], [n] int64 -> [n]."""
    to_the_end = kl.flip(0).cumsum(0).flip(0)
    _, row, sizes = torch.unique_consecutive(row_ids, return_inverse=True, return_counts=True)
    behind = torch.cat([to_the_end, to_the_end.new_zeros(1)])[sizes.cumsum(0)]
    return to_the_end - behind[row]
