"""Qwen3: dense decoder layers with a norm on each query and key head."""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import DENSE_PLAN, dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family("qwen3", dense_products, layers_apart=True, tensor=DENSE_PLAN)
