"""Gemma 3's text model: four norms per layer, whose weights are centred on 0; scaled embeddings; layers with a sliding
window between layers with full attention, each kind with its own rotary base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tau2_lightning.strategy.families.decoder import DENSE_PLAN, dense_products
from tau2_lightning.strategy.families.family import Family


def _refuses(config: Any) -> str | None:
    if config.use_bidirectional_attention:
        return "its tokens attend to later ones (use_bidirectional_attention), so it is no language model"
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key) is not None:
            return f"{key} is not provided"
    return None


def _scale(config: Any) -> float:
    return float(config.hidden_size**0.5)


FAMILY = Family(
    "gemma3_text",
    dense_products,
    layers_apart=True,
    tensor=replace(DENSE_PLAN, norms=(*DENSE_PLAN.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm")),
    refuses=_refuses,
    own_projections=True,
    centred_norms=True,
    rotary_kind="self_attn.layer_type",
    embedding_scale=_scale,
)
