"""Log-ratios that stay finite, and the policy objectives made from them. All of [B, T] float32, label-aligned."""

from __future__ import annotations

import torch
from torch import Tensor

#: |log ratio| beyond this is treated as constant: exp(20) = 4.9e8 is finite in float32 and long past any clip.
MAX_LOG_RATIO = 20.0
#: Replaces log 0. Large, so that ratios with it are clamped; finite, so that inf - inf never becomes nan.
LOG_ZERO = -1e4


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where ``mask``, else 0, with zero gradient there even if the value is inf or nan."""
    return torch.where(mask, values, torch.zeros_like(values))


def finite_logprobs(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log-probs at ``mask``, 0 elsewhere, -inf replaced by LOG_ZERO. A nan at a trained token stays nan: a defect."""
    return masked(logprobs, mask).clamp(min=LOG_ZERO, max=-LOG_ZERO)


def log_difference(numerator: Tensor, denominator: Tensor, mask: Tensor) -> Tensor:
    """``log p - log q`` at ``mask``, 0 elsewhere: finite, not bounded. What a row's ratio is made of."""
    return finite_logprobs(numerator, mask) - finite_logprobs(denominator, mask)


def bounded(log_ratios: Tensor) -> Tensor:
    """Clamped to +-MAX_LOG_RATIO (no gradient beyond). A row's ratio is bounded as a whole, after its mean or sum."""
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def log_ratio(numerator: Tensor, denominator: Tensor, mask: Tensor) -> Tensor:
    """``log(p / q)`` of each token at ``mask``, 0 elsewhere, clamped to +-MAX_LOG_RATIO (no gradient beyond)."""
    return bounded(log_difference(numerator, denominator, mask))


def sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row over its trained tokens, spread back over them. [B, T] -> [B, T], 0 outside ``mask``."""
    mean = masked(values, mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return masked(mean.expand_as(values), mask)


def sequence_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of each row over its trained tokens, spread back over them. [B, T] -> [B, T], 0 outside ``mask``."""
    return masked(masked(values, mask).sum(-1, keepdim=True).expand_as(values), mask)


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, eps_clip: float, eps_clip_higher: float, c_clip: float | None = None
) -> Tensor:
    """Token loss of PPO with an asymmetric clip and an optional dual clip. [B, T] -> [B, T].

    ``max(-A rho, -A clip(rho, 1 - eps_clip, 1 + eps_clip_higher))`` (arXiv:1707.06347; higher bound: DAPO,
    arXiv:2503.14476), and for A < 0 at most ``-c_clip A`` (dual clip, arXiv:1912.09729; c_clip > 1).
    """
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - eps_clip, 1 + eps_clip_higher))
    if c_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -c_clip * advantages), loss)


def cispo_surrogate(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, eps_clip: float, eps_clip_higher: float
) -> Tensor:
    """Token loss of CISPO: ``-sg(clip(rho, 1 - eps_clip, 1 + eps_clip_higher)) A log pi`` (arXiv:2506.13585, eq. 4).

    The weight is clipped, not the token: every token keeps a gradient. ``eps_clip >= 1`` leaves the low side open.
    """
    return -ratio.clamp(1 - eps_clip, 1 + eps_clip_higher).detach() * advantages * logprobs


def clip_fractions(
    ratio: Tensor, advantages: Tensor, mask: Tensor, *, eps_clip: float, eps_clip_higher: float
) -> dict[str, Tensor]:
    """Trained tokens whose gradient the clip removes: low (A < 0), high (A > 0) and either. [B, T] bool each."""
    low = mask & (ratio < 1 - eps_clip) & (advantages < 0)
    high = mask & (ratio > 1 + eps_clip_higher) & (advantages > 0)
    return {"clip_low": low, "clip_high": high, "clip_region": low | high}
