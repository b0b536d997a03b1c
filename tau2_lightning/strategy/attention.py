"""The attention of our programs: rows packed side by side are kept apart, and context ranks exchange their slices.

Context parallelism is DeepSpeed-Ulysses (arXiv:2309.14509): ranks hold slices of the sequence, and exchange them for
heads around attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .collectives import Group, exchange
from .inputs import Segments
from .modules import find
from .tree_attention import attend_forest

NAME = "archon"


def attend_within_rows(config: Any, layers: Iterable[nn.Module], attention: str, group: Group) -> None:
    """Make ``layers`` attend within ``segments``, a keyword of their forward, and exchange heads over ``group``.

    ``config`` is their model's, which is of a known `Family`; ``attention`` is the attention's name within a layer.
    The number of heads of a tensor rank must be a multiple of the group's size.
    """
    _use_attention(config)
    for layer in layers:
        find(layer, attention).cp_group = group


def exchange_heads(model: Any, group: Group) -> None:
    """Make a model of any family that calls transformers' attention interface exchange heads over ``group``."""
    _use_attention(model.config)
    for module in model.modules():
        module.cp_group = group


def _use_attention(config: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    config._attn_implementation = NAME


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: causal, and within ``segments`` when they are given.

    ``query``, ``key``, ``value`` [B, heads, T/c, D] -> [B, T/c, heads, D]. In between, each context rank has every
    position for heads/c heads.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    group = module.cp_group
    query, key, value = (exchange(x, group, split=1, join=2) for x in (query, key, value))
    dtype = value.dtype
    if value.device.type == "cpu" and dtype == torch.bfloat16:
        # torch's backward of attention in bfloat16 takes a CPU six times as long as in float32: half of a small step.
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):  # it would make them bfloat16 again
        if segments is not None and segments.prefix is not None:
            key, value = _with_prefix(module, key, value, segments)
        if segments is None or (segments.single and not segments.before):
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        else:
            out = _within(query, key, value, segments, float(kwargs.get("dropout", 0.0)), kwargs.get("scaling"))
    return exchange(out.to(dtype), group, split=1, join=2), None


def _with_prefix(module: nn.Module, key: Tensor, value: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Keys and values of a kept prefix: recorded, put before these, or given the gradients that were left at them."""
    prefix = segments.prefix
    assert prefix is not None
    if segments.role == "use":
        return prefix.before(module, key, value)
    if segments.role == "return":
        return prefix.returned(module, key, value)
    prefix.record(module, key, value)
    return key, value


def _attend_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float, scaling: float | None
) -> Tensor:
    """[1, heads, T, D] -> attention within each segment and over those it is behind -> [1, T, heads, D]."""
    if segments.branches or segments.before:
        return attend_forest(query, key, value, segments, scaling)
    kernel = _varlen if dropout == 0.0 and has_varlen(query) else _one_by_one
    return kernel(query, key, value, segments, dropout, scaling)


# Lengths change with every micro-batch, so a compiler cannot specialise on them.
_uncompiled: Any = torch.compiler.disable
_within = _uncompiled(_attend_segments)


def has_varlen(query: Tensor) -> bool:
    """Whether torch's variable-length flash attention runs these queries: half precision on an Ampere or newer GPU."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    at, longest = segments.offsets, segments.longest
    causal = (-1, 0)
    out = varlen_attn(q, k, v, at, at, longest, longest, scale=scaling, window_size=causal, enable_gqa=True)
    assert isinstance(out, Tensor)
    return out[None]


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float, scaling: float | None
) -> Tensor:
    """Causal attention row by row: quadratic in each row only, where a dense mask is quadratic in their sum."""
    parts = zip(*(torch.split(x, segments.lengths, dim=2) for x in (query, key, value)), strict=True)
    done = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(done, dim=2).transpose(1, 2)
