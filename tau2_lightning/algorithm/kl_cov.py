"""KL-Cov: a KL penalty for the few tokens of highest covariance (arXiv:2505.22617)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .base import Metrics
from .covariance import ByCovariance, largest, share
from .ratios import log_ratio


@dataclass(frozen=True, kw_only=True)
class KLCov(ByCovariance):
    """Token loss ``-A rho``, plus ``ppo_kl_coef |log rho|`` for the ``kl_cov_ratio`` of tokens with the highest
    covariance of log-prob and advantage (eqs. 10, 13 and 14; the estimate |log rho| of the KL is the authors').

    See `ByCovariance` for the tokens over which both are taken; of equal covariances the first in the batch is chosen.
    """

    kl_cov_ratio: float = 2e-3
    ppo_kl_coef: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.kl_cov_ratio <= 1:
            raise ValueError(f"algorithm.kl_cov_ratio={self.kl_cov_ratio} is outside (0, 1]")
        if not self.ppo_kl_coef >= 0:
            raise ValueError("algorithm.ppo_kl_coef must not be negative")

    def choice(self, covariance: Tensor, tokens: Mapping[str, Tensor], version: int) -> Tensor:
        return largest(covariance, share(len(covariance), self.kl_cov_ratio))

    def loss(self, logprobs: Tensor, entropy: Tensor, microbatch: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(logprobs, entropy, microbatch)
        mask, proximal = microbatch["loss_mask"], self.proximal_logprobs(logprobs, microbatch)
        weights = self.importance_weights(proximal, microbatch["behaviour_logprobs"], logprobs, mask)
        distance = log_ratio(logprobs, proximal, weights.trained).abs() * microbatch["chosen"] * weights.weight
        penalty = self.ppo_kl_coef * self._mean(distance, microbatch)
        added = {name: metrics[name] + penalty.detach().float() for name in ("loss", "policy_loss")}
        return loss + penalty, metrics | added
