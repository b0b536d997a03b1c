"""GLM-4 (0414): norms before and after attention and MLP, half of each head rotated in interleaved pairs, gate and up
in one matrix.
"""

from __future__ import annotations

from tau2_lightning.strategy.families.decoder import dense_products
from tau2_lightning.strategy.families.family import Family

FAMILY = Family(
    "glm4",
    dense_products,
    layers_apart=True,
    reasons={"t": "its MLPs keep gate and up in one matrix, which t would cut between the two"},
    own_projections=True,
    no_adapters={"gate_up_proj": "vLLM names its parts gate_proj and up_proj"},
)
