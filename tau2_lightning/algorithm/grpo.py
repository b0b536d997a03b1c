"""GRPO: Group Relative Policy Optimization (arXiv:2402.03300), with DAPO's higher clip and token mean as defaults."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Metrics, PolicyGradient
from .ratios import clip_fractions, clipped_surrogate


@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyGradient):
    """``A = (r - mean_group) / (std_group + norm_eps)`` for every token of an episode, and PPO's clipped loss.

    The ratio may move within ``[1 - eps_clip, 1 + eps_clip_higher]``; ``c_clip`` > 1 also bounds the loss of tokens
    with a negative advantage (dual clip).
    """

    eps_clip: float = 0.2
    eps_clip_higher: float = 0.28
    c_clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eps_clip < 0 or self.eps_clip_higher < 0:
            raise ValueError("algorithm.eps_clip and algorithm.eps_clip_higher must not be negative")
        if self.c_clip is not None and self.c_clip <= 1:
            raise ValueError(f"algorithm.c_clip={self.c_clip} must be above 1")

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        ratio = ratio_logs.exp()
        bounds = {"eps_clip": self.eps_clip, "eps_clip_higher": self.eps_clip_higher}
        metrics = clip_fractions(ratio.detach(), advantages, mask, **bounds)
        if self.c_clip is not None:
            metrics["clip_dual"] = mask & (ratio > self.c_clip) & (advantages < 0)
        return clipped_surrogate(ratio, advantages, c_clip=self.c_clip, **bounds), metrics
