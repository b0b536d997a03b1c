"""An algorithm as a user would write it: both hooks in one short file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tau2_lightning.algorithm import PolicyGradient


@dataclass(frozen=True, kw_only=True)
class RankAdvantages(PolicyGradient):
    """Advantages by rank in the group, in [-1, 1], and a loss on the ratio's logarithm, which is never clipped."""

    sharpness: float = 1.0

    def advantages(self, rewards: Tensor, group_ids: Tensor, lengths: Tensor) -> Tensor:
        value = torch.zeros_like(rewards)
        for group in group_ids.unique():
            own = rewards[group_ids == group]
            below, above = (own[:, None] > own).sum(1), (own[:, None] < own).sum(1)
            value[group_ids == group] = (below - above).to(rewards) / max(len(own) - 1, 1)
        return self.sharpness * value

    def token_loss(self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, dict]:
        return -advantages * ratio_logs, {"far_tokens": mask & (ratio_logs.abs() > 1)}
