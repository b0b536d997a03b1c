"""Advantages and losses: pure functions of tensors, and the algorithms made of them."""

from tau2_lightning.algorithm.base import Credit, PolicyGradient
from tau2_lightning.algorithm.cispo import CISPO
from tau2_lightning.algorithm.dapo import DAPO
from tau2_lightning.algorithm.dr_grpo import DrGRPO
from tau2_lightning.algorithm.grpo import GRPO
from tau2_lightning.algorithm.gspo import GSPO
from tau2_lightning.algorithm.metrics import dashboard, finalise, merge
from tau2_lightning.algorithm.rloo import RLOO

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
