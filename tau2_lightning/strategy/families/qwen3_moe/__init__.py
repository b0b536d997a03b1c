"""Qwen3-MoE: Qwen3 with mixtures of experts instead of MLPs. Experts are spread over data ranks, not over t."""

from __future__ import annotations

from typing import Any

from tau2_lightning.strategy.families.decoder import attention_products, dense_products
from tau2_lightning.strategy.families.family import ExpertPlan, Family

from .experts import SplitExperts
from .files import fused
from .router import ROUTER


def _products(config: Any) -> float:
    """A token sees the experts that it is routed to and no others."""
    used = getattr(config, "num_experts_per_tok", 0) or 0
    if not used:
        return dense_products(config)
    return float(attention_products(config) + 3 * used * config.moe_intermediate_size)


def _count(config: Any) -> int:
    return getattr(config, "num_experts", 0) or 0


EXPERTS = ExpertPlan("mlp.experts", SplitExperts, _count, ROUTER)
FAMILY = Family("qwen3_moe", _products, layers_apart=True, experts=EXPERTS, fused=fused)
