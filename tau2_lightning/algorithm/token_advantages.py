"""Advantages of tokens, after the credit of episodes and turns: KL in the reward, then normalisation over the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .advantages import Level, baseline, centred, group_extreme, spread
from .kl import Estimator, Place, kl_estimate, kl_to_go, kl_to_go_by_row

#: Smaller advantages of episodes are rounding errors.
NEGLIGIBLE = 1e-6

Truncated = Literal["none", "turn", "episode"]


@dataclass(frozen=True, kw_only=True)
class AdvNorm:
    """``(A - mean) / (std + eps)`` over the trained tokens of a batch, AReaL's ``adv_norm``.

    ``mean_level`` and ``std_level``: over the tokens of the whole batch, of the token's group, or not at all. Every
    trained token counts once, so long episodes weigh more than short ones; batch/batch is the normalisation of
    REINFORCE++ (arXiv:2501.03262). ``unbiased`` divides the variance by n - 1 (Bessel's correction; AReaL's
    ``std_unbiased``). The std is taken about the mean that is subtracted; without a mean it is the root mean square.

    Raises ValueError, naming the key, for an unknown level and an ``eps`` that is not above 0.
    """

    mean_level: Level = "none"
    std_level: Level = "none"
    unbiased: bool = True
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("mean_level", "std_level"):
            value, allowed = getattr(self, name), get_args(Level)
            if value not in allowed:
                raise ValueError(f"algorithm.adv_norm.{name}={value!r} is not one of {', '.join(allowed)}")
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"algorithm.adv_norm.eps={self.eps} must be a number above 0")

    @classmethod
    def of(cls, given: AdvNorm | Mapping[str, Any] | None) -> AdvNorm:
        """From a section of the configuration; null is no normalisation. Raises ValueError for an unknown key."""
        if isinstance(given, AdvNorm):
            return given
        try:
            return cls(**{str(name): value for name, value in (given or {}).items()})
        except TypeError as error:
            raise ValueError(f"algorithm.adv_norm takes mean_level, std_level, unbiased and eps: {error}") from error

    @property
    def active(self) -> bool:
        """Whether it changes any advantage."""
        return self.mean_level != "none" or self.std_level != "none"

    def __call__(self, advantages: Tensor, group_ids: Tensor) -> Tensor:
        """Normalise the advantages [n] float64, n > 0, of all trained tokens of a batch. Returns [n] float64.

        A token whose advantage equals its mean gets exactly 0 (see `advantages.centred`).
        """
        values = centred(advantages, group_ids, self.mean_level)
        if self.std_level == "none":
            return values
        return values / (spread(values, group_ids, self.std_level, self.unbiased) + self.eps)


@dataclass(frozen=True, kw_only=True)
class TokenAdvantages:
    """The settings of this stage, and the two places where it runs: ``finish``, over the whole batch, and the loss.

    ``kl_ctl`` times the ``kl_estimator`` (k1, k2, k3) is a part of the loss or of the reward (``kl_in``).
    ``adv_norm``: see `AdvNorm`. ``mask_truncated``: which sampled tokens are left out of training because a limit cut
    them off: none; those of a ``turn`` that ended by its length; all of an ``episode`` with such a turn, or that
    max_steps or the context's length ended (overlong filtering, DAPO, arXiv:2503.14476, section 3.4). The rewards of
    such episodes still count in the baselines of the others.
    """

    kl_ctl: float = 0.0
    kl_estimator: Estimator = "k3"
    kl_in: Place = "loss"
    adv_norm: AdvNorm = AdvNorm()
    mask_truncated: Truncated = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "adv_norm", AdvNorm.of(self.adv_norm))

    @property
    def finishes_late(self) -> bool:
        """True when ``finish`` reads log-probs that only a forward pass of the trainer makes."""
        return self._kl_before_norm

    @property
    def _kl_before_norm(self) -> bool:
        return self.adv_norm.active and self.kl_ctl != 0.0 and self.kl_in == "reward"

    def finish(self, tokens: Mapping[str, Tensor], version: int) -> dict[str, Tensor]:
        """What needs all trained tokens of a batch at once, before it is cut into steps, ranks and micro-batches.

        ``tokens`` are [n] over the trained tokens, row after row: ``advantages``, ``behaviour_logprobs`` and, where the
        algorithm asks for them, ``proximal_logprobs`` and ``reference_logprobs``, float64; ``row_ids``, ``groups`` and
        ``positions`` (in the row), int64. ``version`` is the trainer's weight version. Returns columns [n] by name:
        ``advantages`` replaces the advantages, ``chosen`` marks tokens for the algorithm's own loss.
        """
        if not self.adv_norm.active:
            return {}
        advantages = tokens["advantages"]
        if self._kl_before_norm:
            every = torch.ones_like(advantages, dtype=torch.bool)
            sampled = tokens.get("proximal_logprobs", tokens["behaviour_logprobs"])
            kl = kl_estimate(sampled, tokens["reference_logprobs"], every, self.kl_estimator)
            advantages = advantages - self.kl_ctl * kl_to_go_by_row(kl, tokens["row_ids"])
        return {"advantages": self.adv_norm(advantages, tokens["groups"])}

    def kl_shaped_advantages(self, microbatch: Mapping[str, Tensor]) -> Tensor:
        """Advantages [B, T]; with ``kl_in=reward``, ``kl_ctl`` times the KL from each token on is subtracted.

        With ``adv_norm`` as well, ``finish`` has subtracted it before the normalisation.
        """
        advantages, mask = microbatch["advantages"], microbatch["loss_mask"]
        if not self.kl_ctl or self.kl_in == "loss" or self._kl_before_norm:
            return advantages
        sampled = microbatch.get("proximal_logprobs", microbatch["behaviour_logprobs"])
        kl = kl_estimate(sampled, microbatch["reference_logprobs"], mask, self.kl_estimator)
        return advantages - self.kl_ctl * kl_to_go(kl, mask)

    def signal(self, advantages: Tensor, group_ids: Tensor, mean_level: Level) -> Tensor:
        """Whether an episode's group has a signal after ``adv_norm``: advantages [N], [N] int -> [N] bool.

        With ``adv_norm``'s mean over the batch, a group without a baseline of its own (``mean_level`` none) is told
        apart from other groups, so it always has a signal. A group with a baseline that is all zero has none: the
        batch's mean, which moves all tokens alike, teaches nothing about its task.
        """
        if self.adv_norm.mean_level == "batch" and mean_level == "none":
            return torch.ones_like(advantages, dtype=torch.bool)
        if self.adv_norm.mean_level == "group":
            advantages = advantages - baseline(advantages, group_ids)
        return group_extreme(advantages.abs(), group_ids, "amax") > NEGLIGIBLE
