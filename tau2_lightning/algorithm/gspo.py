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
    """One ratio per row, ``exp(mean_t log(pi / pi_prox))`` (eq. 7) over its tokens that train, clipped far tighter than
    a token's ratio; mean over episodes."""

    eps_clip: float = 3e-4
    eps_clip_higher: float = 4e-4
    aggregation: Aggregation = "sequence_mean"

    def ratio_logs(self, token_logs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
        return sequence_mean(token_logs, mask), {}
