"""Phi-3, Phi-3.5, Phi-4, Phi-4-mini: queries, keys and values in one matrix, gate and up in another; maybe longrope."""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family(
    "phi3",
    dense_products,
    layers_apart=True,
    reasons={"t": "its queries, keys and values are one matrix, as are gate and up; t would cut between them"},
    own_projections=True,
)
