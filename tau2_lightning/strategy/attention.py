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
from .kept_prefix import NOTHING
from .modules import find
from .tree_attention import attend_forest

NAME = "archon"


def attend_within_rows(config: Any, layers: Iterable[nn.Module], attention: str, group: Group) -> None:
    """Make ``layers`` attend within ``segments``, a keyword of their forward, and exchange heads over ``group``.

    ``config`` is their model's, which is of a known `Family`; ``attention`` is the attention's name within a layer, and
    layers without it stay as they are. The number of heads of a tensor rank must be a multiple of the group's size.
    """
    _use_attention(config)
    for layer in layers:
        module = find(layer, attention)
        if module is not None:
            module.cp_group = group


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
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: causal, and within ``segments`` when they are given.

    ``query``, ``key``, ``value`` [B, heads, T/c, D] -> [B, T/c, heads, D]. In between, each context rank has every
    position for heads/c heads. A token sees itself and the ``sliding_window`` - 1 tokens before it, or all. ``s_aux``
    [heads] are sinks: logits that take part in each softmax and whose value is 0.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    group = module.cp_group
    query, key, value = (exchange(x, group, split=1, join=2) for x in (query, key, value))
    if group is not None and s_aux is not None:
        s_aux = s_aux.chunk(group.size())[group.rank()]
    dtype = value.dtype
    if value.device.type == "cpu" and dtype == torch.bfloat16:
        # torch's backward of attention in bfloat16 takes a CPU six times as long as in float32: half of a small step.
        query, key, value = query.float(), key.float(), value.float()
    plain = sliding_window is None and s_aux is None
    with torch.autocast("cpu", enabled=False):  # it would make them bfloat16 again
        if plain and (segments is None or segments.causal):
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        else:
            scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
            out = _within(module, query, key, value, segments, scaling, sliding_window, s_aux)
    return exchange(out.to(dtype), group, split=1, join=2), None


def _attend_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments | None,
    scaling: float,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    """[B, heads, T, D] -> attention within each segment and to those it continues (B is 1), or of B whole rows.

    Returns [B, T, heads, D]. Raises ValueError for branches under a window or with sinks.
    """
    if segments is not None and segments.own is not None:  # the tokens are a prefix themselves
        if segments.role == "return":
            key, value = segments.own.returned(module, key, value)
        else:
            segments.own.record(module, key, value)
    if segments is not None and (segments.branches or segments.before):
        if window is not None or sinks is not None:
            raise ValueError("attention with a window or sinks does not share tokens between rows")
        kept = segments.prefix.seen(module) if segments.prefix is not None else NOTHING
        return attend_forest(query, key, value, segments, scaling, kept)
    if segments is not None and sinks is None and has_varlen(query):
        return _varlen(query, key, value, segments, scaling, window)
    lengths = [query.shape[2]] if segments is None else segments.lengths
    return _one_by_one(query, key, value, lengths, scaling, window, sinks)


# Lengths change with every micro-batch, so a compiler cannot specialise on them; nor can it trace what is kept.
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
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    at, longest = segments.offsets, segments.longest
    before = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, at, at, longest, longest, scale=scaling, window_size=(before, 0), enable_gqa=True)
    assert isinstance(out, Tensor)
    return out[None]


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    scaling: float,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention row by row: quadratic in each row only, where a dense mask is quadratic in their sum."""
    parts = zip(*(torch.split(x, lengths, dim=2) for x in (query, key, value)), strict=True)
    done = [_row(q, k, v, scaling, window, sinks) for q, k, v in parts]
    return torch.cat(done, dim=2).transpose(1, 2)


def _row(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None, sinks: Tensor | None) -> Tensor:
    length, width = query.shape[2], value.shape[3]
    if sinks is not None:
        query, key, value = _with_sinks(query, key, value, sinks / scaling)
    mask = None
    if window is not None and length > window:
        at = torch.arange(query.shape[2], device=query.device)
        behind = at[:, None] - at
        mask = (behind >= 0) & (behind < window)
        if sinks is not None:
            mask[:, 0] = True
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return out if sinks is None else out[:, :, 1:, :width]


def _with_sinks(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A token before the first, which is the sink, and eight more components, of which the first scores it.

    Queries of head h have ``sinks[h]`` there and the sink's key has 1, all other keys 0. The sink's value is 0. The
    first query has no meaning and is thrown away.
    """
    batch, heads, length, _ = query.shape
    query, key, value = (F.pad(x, (0, 8, 1, 0)) for x in (query, key, value))
    score = sinks.to(query.dtype)[None, :, None, None].expand(batch, heads, length + 1, 1)
    query = torch.cat([query[..., :-8], score, query[..., -7:]], -1)
    at_sink = torch.zeros_like(key)
    at_sink[:, :, 0, -8] = 1.0
    return query, key + at_sink, value
