"""The decoder layer that several families share: attention with grouped queries, a gated MLP, two RMS norms."""

from __future__ import annotations

from typing import Any

from .family import TensorPlan

DENSE_PLAN = TensorPlan(
    columns=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    rows=("self_attn.o_proj", "mlp.down_proj"),
    norms=("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"),
    gathers=("self_attn", "mlp"),
)


def attention_products(config: Any) -> int:
    """Multiplications of the four attention projections for one token, in units of the hidden size."""
    heads: int = config.num_attention_heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * width * (heads + (getattr(config, "num_key_value_heads", None) or heads))


def dense_products(config: Any) -> float:
    """`Family.layer_products` of a layer with one gated MLP."""
    return float(attention_products(config) + 3 * config.intermediate_size)
