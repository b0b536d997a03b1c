"""Qwen2: dense decoder layers with biases on queries, keys and values."""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import DENSE_PLAN, dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family("qwen2", dense_products, layers_apart=True, tensor=DENSE_PLAN)
