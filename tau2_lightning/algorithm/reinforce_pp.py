"""REINFORCE++ and REINFORCE++-baseline: advantages normalised over all tokens of the batch (arXiv:2501.03262)."""

from __future__ import annotations

from dataclasses import dataclass

from .advantages import Level
from .grpo import GRPO
from .kl import Estimator, Place
from .token_advantages import AdvNorm

OVER_THE_BATCH = AdvNorm(mean_level="batch", std_level="batch")


@dataclass(frozen=True, kw_only=True)
class ReinforcePP(GRPO):
    """``A_t = r - kl_ctl * sum_{s >= t} KL_s`` with k1 of KL(policy, reference), and PPO's loss on
    ``(A_t - mean) / std`` over the trained tokens of the whole batch. No baseline by group, so one episode per task
    is enough.
    """

    mean_level: Level = "none"
    std_level: Level = "none"
    adv_norm: AdvNorm = OVER_THE_BATCH
    kl_ctl: float = 1e-3
    kl_estimator: Estimator = "k1"
    kl_in: Place = "reward"
    eps_clip_higher: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ReinforcePPBaseline(ReinforcePP):
    """``A = r - mean_group``, normalised over the tokens of the whole batch; k2 of the KL is a part of the loss."""

    mean_level: Level = "group"
    kl_estimator: Estimator = "k2"
    kl_in: Place = "loss"
