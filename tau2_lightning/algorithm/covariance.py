"""The covariance of log-prob and advantage by token, and choices of tokens by it (arXiv:2505.22617, section 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import Metrics, PolicyGradient
from .ratios import finite_logprobs, masked

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class ByCovariance(PolicyGradient, ABC):
    """An algorithm that treats a few tokens differently, chosen by their covariance of log-prob and advantage.

    Covariance and choice are over all trained tokens of the batch, before it is cut into optimizer steps, ranks and
    micro-batches, so every layout chooses the same tokens. The log-prob is the proximal policy's where it is
    recomputed, else the sampler's; the advantage is that after ``adv_norm`` and before ``kl_in=reward``. Rejection
    comes later, so a chosen token may be one that does not train.
    """

    @abstractmethod
    def choice(self, covariance: Tensor, tokens: Mapping[str, Tensor], version: int) -> Tensor:
        """Which tokens are chosen: [n] float64 -> [n] bool. ``tokens`` and ``version`` as in ``finish``."""

    @property
    def finishes_late(self) -> bool:
        return self.needs_proximal or super().finishes_late

    def finish(self, tokens: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
        columns = super().finish(tokens, version)
        advantages = columns.get("advantages", tokens["advantages"])
        logprobs = tokens.get("proximal_logprobs", tokens["behaviour_logprobs"])
        return columns | {"chosen": self.choice(covariances(logprobs, advantages), tokens, version)}

    def loss(self, logprobs: Tensor, entropy: Tensor, microbatch: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(logprobs, entropy, microbatch)
        return loss, metrics | {"chosen": masked(microbatch["chosen"], microbatch["loss_mask"]).sum().float()}


def covariances(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """``(log pi - mean log pi) (A - mean A)`` of each token, means over all n tokens (eq. 10). [n], [n] -> [n]."""
    finite = finite_logprobs(logprobs, torch.ones_like(logprobs, dtype=torch.bool))
    return (finite - finite.mean()) * (advantages - advantages.mean())


def share(tokens: int, ratio: float) -> int:
    """How many of ``tokens`` a ratio chooses: ``floor(ratio * tokens)``, at least 1."""
    return max(1, int(ratio * tokens))


def largest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest values; of equal ones the first. [n] -> [n] bool."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def sampled(candidates: Tensor, count: int, *keys: Tensor, seed: int) -> Tensor:
    """At most ``count`` of the ``candidates``, uniformly at random without repetition. [n] bool -> [n] bool.

    A token's lot is a hash of ``seed`` and of its ``keys`` [n] int64, which name it (row and position). The choice
    therefore depends on nothing else: not on the order of tokens, on a generator's state, or on which rank asks.
    """
    lots = hashed(*(key.cpu().numpy().astype(np.uint64) for key in keys), seed=seed)
    at = np.flatnonzero(candidates.cpu().numpy())
    chosen = torch.zeros_like(candidates)
    chosen[torch.from_numpy(at[np.argsort(lots[at], kind="stable")[:count]])] = True
    return chosen


def hashed(*keys: Words, seed: int) -> Words:
    """A pseudo-random uint64 for each position of ``keys`` [n]: splitmix64's mixing, once for each key."""
    state = np.full(keys[0].shape, seed, np.uint64)
    for key in keys:
        state = state * np.uint64(0x9E3779B97F4A7C15) + key + np.uint64(0x632BE59BD9B4E019)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
