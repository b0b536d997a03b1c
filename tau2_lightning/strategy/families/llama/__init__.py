"""Llama (and SmolLM2, which is one): dense decoder layers."""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import DENSE_PLAN, dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family("llama", dense_products, layers_apart=True, tensor=DENSE_PLAN)
