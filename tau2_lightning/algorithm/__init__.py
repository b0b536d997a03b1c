"""Advantages and losses: pure functions of tensors, and the algorithms made of them."""

from .base import PolicyGradient
from .cispo import CISPO
from .credit import Credit
from .dapo import DAPO
from .dr_grpo import DrGRPO
from .grpo import GRPO
from .gspo import GSPO
from .metrics import dashboard, finalise, merge
from .rloo import RLOO

__all__ = [
    "CISPO",
    "DAPO",
    "GRPO",
    "GSPO",
    "RLOO",
    "Credit",
    "DrGRPO",
    "PolicyGradient",
    "dashboard",
    "finalise",
    "merge",
]
