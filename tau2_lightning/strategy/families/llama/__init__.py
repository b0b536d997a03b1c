"""Llama: dense decoder layers, trained whole. Taking them apart (p, t) is not provided."""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family("llama", dense_products)
