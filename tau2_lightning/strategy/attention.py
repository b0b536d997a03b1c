"""The attention of our programs: rows packed side by side are kept apart, and context ranks exchange their slices.

Context parallelism is Ulysses: ranks hold slices of the sequence, and exchange them for heads around attention.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .collectives import exchange
from .elementwise import rotate, use_own_norms
from .inputs import Segments

NAME = "archon"


def use_own_layers(model: Any, layers: list[nn.Module], group: dist.ProcessGroup | None) -> None:
    """Make these ``layers`` attend within ``segments`` (a keyword of their forward) and exchange heads over ``group``;
    norms and rotations of ``model`` are ours from here on.

    It must be of one of `model.PLAIN_HEAD`'s families. Heads per tensor rank must divide by the group's size.
    """
    _use_attention(model.config)
    for layer in layers:
        attention: Any = layer.self_attn
        attention.cp_group = group
        attention.forward = MethodType(_attend, attention)
    use_own_norms(model.model)


def exchange_heads(model: Any, group: dist.ProcessGroup | None) -> None:
    """Make a model of any family that calls transformers' attention interface exchange heads over ``group``."""
    _use_attention(model.config)
    for module in model.modules():
        module.cp_group = group


def _use_attention(config: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    config._attn_implementation = NAME


def _attend(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """The forward of transformers' attention, but for how queries and keys are rotated; with a cache, itself."""
    if past_key_values is not None:
        kwargs |= {"attention_mask": attention_mask, "past_key_values": past_key_values}
        own: tuple[Tensor, Any] = type(module).forward(module, hidden_states, position_embeddings, **kwargs)
        return own
    shape = hidden_states.shape[:-1]
    heads = (*shape, -1, module.head_dim)
    query, key, value = (part(hidden_states).view(heads) for part in (module.q_proj, module.k_proj, module.v_proj))
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    cos, sin = position_embeddings
    query, key = (rotate(x.transpose(1, 2), cos, sin) for x in (query, key))
    dropout = module.attention_dropout if module.training else 0.0
    options = {"segments": kwargs.get("segments"), "dropout": dropout, "scaling": module.scaling}
    out, _ = _attention(module, query, key, value.transpose(1, 2), attention_mask, **options)
    return module.o_proj(out.reshape(*shape, -1)), None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, heads, T/c, D] -> every position for heads/c heads -> attention -> [B, T/c, heads, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    group = module.cp_group
    query, key, value = (exchange(x, group, split=1, join=2) for x in (query, key, value))
    dtype = value.dtype
    if value.device.type == "cpu" and dtype == torch.bfloat16:
        # torch's backward of attention in bfloat16 takes a CPU six times as long as in float32: half of a small step.
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):  # it would make them bfloat16 again
        if segments is None or segments.single:
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        else:
            out = _within(query, key, value, segments, float(kwargs.get("dropout", 0.0)), kwargs.get("scaling"))
    return exchange(out.to(dtype), group, split=1, join=2), None


@torch.compiler.disable  # lengths change with every micro-batch: nothing to specialise on
def _within(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, dropout: float, scaling: float | None
) -> Tensor:
    """[1, heads, T, D] -> attention within each segment -> [1, T, heads, D]."""
    kernel = _varlen if dropout == 0.0 and has_varlen(query) else _one_by_one
    return kernel(query, key, value, segments, dropout, scaling)


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
    parts = zip(*(x.split(segments.lengths, dim=2) for x in (query, key, value)), strict=True)
    done = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in parts
    ]
    return torch.cat(done, dim=2).transpose(1, 2)
