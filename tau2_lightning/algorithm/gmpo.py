"""GMPO: Geometric-Mean Policy Optimization (arXiv:2507.20673)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .aggregation import Aggregation
from .base import Metrics
from .grpo import GRPO
from .ratios import sequence_mean


@dataclass(frozen=True, kw_only=True)
class GMPO(GRPO):
    """One ratio per row, the geometric mean of the ratios of its tokens that train after each is clipped:
    ``-A exp(mean_t clip(log rho_t))`` (section 3), mean over episodes.

    The clip is PPO's, one-sided by the sign of A, on the logarithm: at most ``eps_clip_higher`` for A > 0, at least
    ``-eps_clip`` for A < 0, so ratios within ``[exp(-eps_clip), exp(eps_clip_higher)]`` are free. ``c_clip`` has no
    meaning here and is refused.
    """

    eps_clip: float = 0.4
    eps_clip_higher: float = 0.4
    aggregation: Aggregation = "sequence_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c_clip is not None:
            raise ValueError("algorithm.c_clip has no meaning for GMPO: leave it null")

    def ratio_logs(self, token_logs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
        low, high = token_logs.clamp(min=-self.eps_clip), token_logs.clamp(max=self.eps_clip_higher)
        below = mask & (token_logs < -self.eps_clip) & (advantages < 0)
        above = mask & (token_logs > self.eps_clip_higher) & (advantages > 0)
        clipped = {"clip_low": below, "clip_high": above, "clip_region": below | above}
        return sequence_mean(torch.where(advantages > 0, high, low), mask), clipped

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        return -advantages * ratio_logs.exp(), {}
