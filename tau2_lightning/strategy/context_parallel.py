"""Ulysses context parallelism: ranks hold slices of the sequence, and exchange them for heads around attention."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tau2_lightning.strategy.collectives import exchange

NAME = "ulysses_sdpa"


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """[B, heads, T/c, D] -> every position for heads/c heads -> SDPA -> [B, T/c, heads, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    group = module.cp_group
    query, key, value = (exchange(x, group, split=1, join=2) for x in (query, key, value))
    out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return exchange(out, group, split=1, join=2), None


def apply_context_parallel(config: Any, layers: list[nn.Module], group: dist.ProcessGroup) -> None:
    """Make the attention of these layers exchange over ``group``. Heads per tensor rank must divide by its size."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    config._attn_implementation = NAME
    for layer in layers:
        attention: Any = layer.self_attn
        attention.cp_group = group
