"""Advantages and losses: pure functions of tensors, and the algorithms made of them."""

from .base import PolicyGradient
from .cispo import CISPO
from .clip_cov import ClipCov
from .credit import Credit
from .dapo import DAPO
from .dr_grpo import DrGRPO
from .gmpo import GMPO
from .grpo import GRPO
from .gspo import GSPO
from .kl_cov import KLCov
from .metrics import dashboard, finalise, merge
from .reinforce_pp import ReinforcePP, ReinforcePPBaseline
from .rloo import RLOO
from .sapo import SAPO
from .token_advantages import AdvNorm

__all__ = [
    "CISPO",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "SAPO",
    "AdvNorm",
    "ClipCov",
    "Credit",
    "DrGRPO",
    "KLCov",
    "PolicyGradient",
    "ReinforcePP",
    "ReinforcePPBaseline",
    "dashboard",
    "finalise",
    "merge",
]
