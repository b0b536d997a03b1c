"""Qwen3-MoE: Qwen3 with mixtures of experts instead of MLPs. Attention is split over t, experts are spread over e."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tau2_lightning.strategy.families.decoder import DENSE_PLAN, attention_products, dense_products
from tau2_lightning.strategy.families.family import ExpertPlan, Family

from .experts import SplitExperts
from .files import fused
from .router import ROUTER


def _products(config: Any) -> float:
    """A token uses only the experts that it is routed to."""
    used = getattr(config, "num_experts_per_tok", 0) or 0
    if not used:
        return dense_products(config)
    return float(attention_products(config) + 3 * used * config.moe_intermediate_size)


def _count(config: Any) -> int:
    return getattr(config, "num_experts", 0) or 0


EXPERTS = ExpertPlan("mlp.experts", SplitExperts, _count, ROUTER)
# A layer without experts has an MLP, which is split like Qwen3's. The router sees each rank's own positions.
TENSOR = replace(DENSE_PLAN, routers=("mlp.gate",))
FAMILY = Family("qwen3_moe", _products, layers_apart=True, tensor=TENSOR, experts=EXPERTS, fused=fused)
