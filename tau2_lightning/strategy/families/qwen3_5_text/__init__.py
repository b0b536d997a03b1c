"""Qwen3.5's text model: layers of gated linear attention (arXiv:2412.06464), every fourth with full attention."""

from __future__ import annotations

from typing import Any

from tau2_lightning.strategy.families.family import Family

from .rows import keep_rows_apart


def _products(config: Any) -> float:
    """The mean over both kinds of layers. The query projection of full attention has double width: half is a gate."""
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    full = config.head_dim * (3 * heads + 2 * keys)
    key = config.linear_key_head_dim * config.linear_num_key_heads
    value = config.linear_value_head_dim * config.linear_num_value_heads
    linear = 2 * key + 3 * value + 2 * config.linear_num_value_heads
    kinds = config.layer_types
    attention = sum(full if kind == "full_attention" else linear for kind in kinds) / len(kinds)
    return float(attention + 3 * config.intermediate_size)


_PACKED = "vLLM packs it with other projections of linear attention, and no adapter of those has been verified"

FAMILY = Family(
    "qwen3_5_text",
    _products,
    layers_apart=True,
    reasons={
        "t": "its linear attention keeps queries, keys and values in one matrix and one convolution, which t would cut",
        "c": "its linear attention hands a state from token to token, which c does not hand from rank to rank",
    },
    own_projections=True,
    centred_norms=True,
    prepare=keep_rows_apart,
    no_adapters=dict.fromkeys(("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), _PACKED),
    engine_imports=("torchvision",),  # by the vision part, which vLLM loads with every model of the family
)
