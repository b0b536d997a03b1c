"""CISPO: clipped importance-sampling-weight policy optimization (MiniMax-M1, arXiv:2506.13585)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Metrics
from .grpo import GRPO
from .ratios import cispo_surrogate


@dataclass(frozen=True, kw_only=True)
class CISPO(GRPO):
    """``-sg(clip(rho)) A log pi``: the weight is clipped at ``1 + eps_clip_higher``, no token loses its gradient.

    ``eps_clip`` 1 leaves the low side open, as in the paper. ``c_clip`` has no meaning here and is refused.
    """

    eps_clip: float = 1.0
    eps_clip_higher: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c_clip is not None:
            raise ValueError("algorithm.c_clip has no meaning for CISPO: leave it null")

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        _, metrics = super().token_loss(ratio_logs, logprobs, advantages, mask)
        bounds = {"eps_clip": self.eps_clip, "eps_clip_higher": self.eps_clip_higher}
        return cispo_surrogate(ratio_logs.exp(), logprobs, advantages, **bounds), metrics
