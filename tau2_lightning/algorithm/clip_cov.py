"""Clip-Cov: no gradient for a few random tokens of high covariance (arXiv:2505.22617)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import ByCovariance, sampled, share
from .grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class ClipCov(ByCovariance, GRPO):
    """GRPO whose loss leaves out ``clip_cov_ratio`` of the tokens, drawn uniformly from those whose covariance of
    log-prob and advantage lies within ``(clip_cov_lb, clip_cov_ub)`` (eqs. 10 to 12): they would lower the entropy
    most. See `ByCovariance` for the tokens over which both are taken.

    The draw is a hash of the weight version, the row and the position, so every repetition draws the same tokens. As in
    the authors' scripts, ``eps_clip`` and ``eps_clip_higher`` of 1 leave PPO's own clip nearly open.
    """

    clip_cov_ratio: float = 2e-4
    clip_cov_lb: float = 1.0
    clip_cov_ub: float = 5.0
    eps_clip: float = 1.0
    eps_clip_higher: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.clip_cov_ratio <= 1:
            raise ValueError(f"algorithm.clip_cov_ratio={self.clip_cov_ratio} is outside (0, 1]")
        if not self.clip_cov_lb < self.clip_cov_ub:
            raise ValueError("algorithm.clip_cov_lb must be below algorithm.clip_cov_ub")

    def choice(self, covariance: Tensor, tokens: Mapping[str, Tensor], version: int) -> Tensor:
        within = (covariance > self.clip_cov_lb) & (covariance < self.clip_cov_ub)
        count = share(len(covariance), self.clip_cov_ratio)
        return sampled(within, count, tokens["row_ids"], tokens["positions"], seed=version)

    def kl_shaped_advantages(self, microbatch: Mapping[str, Tensor]) -> Tensor:
        return torch.where(microbatch["chosen"] > 0, 0.0, super().kl_shaped_advantages(microbatch))
