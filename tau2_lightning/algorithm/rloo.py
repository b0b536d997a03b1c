"""RLOO: REINFORCE with a leave-one-out baseline (arXiv:2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass

from .advantages import Level
from .grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class RLOO(GRPO):
    """``A_i = r_i - mean of the others in the group``, no std. On the sampler's own weights the clip is a no-op."""

    std_level: Level = "none"
    leave_one_out: bool = True
    eps_clip_higher: float = 0.2
