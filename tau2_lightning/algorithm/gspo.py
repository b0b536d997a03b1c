"""GSPO: Group Sequence Policy Optimization (arXiv:2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .aggregation import Aggregation
from .base import Metrics
from .grpo import GRPO
from .ratios import sequence_mean


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    """One ratio per row, ``exp(mean_t log(pi / pi_prox))``, clipped far tighter than a token's ratio; mean over
    rows."""

    eps_clip: float = 3e-4
    eps_clip_higher: float = 4e-4
    aggregation: Aggregation = "sequence_mean"

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        return super().token_loss(sequence_mean(ratio_logs, mask), logprobs, advantages, mask)
