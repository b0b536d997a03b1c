"""Mistral: dense decoder layers, which may attend within a sliding window."""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import DENSE_PLAN, dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family("mistral", dense_products, layers_apart=True, tensor=DENSE_PLAN)
