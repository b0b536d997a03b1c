"""SAPO: Soft Adaptive Policy Optimization (arXiv:2511.20347)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .aggregation import Aggregation
from .base import Metrics, PolicyGradient


@dataclass(frozen=True, kw_only=True)
class SAPO(PolicyGradient):
    """A soft gate in the place of the clip: token loss ``-A f(rho)``, ``f(x) = sigmoid(tau (x - 1)) 4 / tau``
    (eqs. 5 and 6), mean over each episode's tokens, then over episodes.

    ``tau`` is ``tau_pos`` for A > 0, else ``tau_neg``. The gradient's weight is ``4 p (1 - p) rho A`` with
    ``p = sigmoid(tau (rho - 1))``: that of an unclipped ratio at rho = 1, and less the further rho is from 1. A higher
    temperature narrows the gate.
    """

    tau_pos: float = 1.0
    tau_neg: float = 1.05
    aggregation: Aggregation = "sequence_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tau_pos > 0 and self.tau_neg > 0):
            raise ValueError("algorithm.tau_pos and algorithm.tau_neg must be above 0")

    def token_loss(
        self, ratio_logs: Tensor, logprobs: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Metrics]:
        tau = torch.where(advantages > 0, self.tau_pos, self.tau_neg).to(ratio_logs.dtype)
        return -advantages * (tau * (ratio_logs.exp() - 1)).sigmoid() * 4 / tau, {}
