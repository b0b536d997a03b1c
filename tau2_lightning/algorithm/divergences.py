"""How far a row is from the policy that sampled it: the measures by which whole rows are rejected."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .ratios import MAX_LOG_RATIO, masked, sequence_mean


def k2(log_weights: Tensor) -> Tensor:
    """``d^2 / 2`` of each token, d = log(pi_prox / pi_behaviour) clamped to +-20 (Schulman 2020). [B, T] -> [B, T]."""
    return log_weights.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) ** 2 / 2


def k3(log_weights: Tensor) -> Tensor:
    """``exp(d) - 1 - d``, an estimate of KL(behaviour || proximal) on behaviour's samples. [B, T] -> [B, T]."""
    d = log_weights.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return d.exp() - 1 - d


def sequence_max(values: Tensor, mask: Tensor) -> Tensor:
    """Largest value of each row over its trained tokens, spread back over them; 0 outside. [B, T] -> [B, T]."""
    lowest = torch.finfo(values.dtype).min
    largest = torch.where(mask, values, lowest).amax(-1, keepdim=True)
    return masked(largest.expand_as(values), mask)


def largest_ratio(log_weights: Tensor, mask: Tensor) -> Tensor:
    """The largest of a row's ratios pi_prox / pi_behaviour. [B, T] -> [B, T]."""
    return sequence_max(log_weights, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


#: ``rejection`` -> what is compared with its bounds, one value per row, spread over its tokens; verl's ``rollout_rs``
#: options seq_mean_k2, seq_mean_k3, seq_max_k2 and seq_max_k3, and AReaL's metric=ratio with agg=max.
DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "max": largest_ratio,
    "mean_k2": lambda log_weights, mask: sequence_mean(k2(log_weights), mask),
    "mean_k3": lambda log_weights, mask: sequence_mean(k3(log_weights), mask),
    "max_k2": lambda log_weights, mask: sequence_max(k2(log_weights), mask),
    "max_k3": lambda log_weights, mask: sequence_max(k3(log_weights), mask),
}
