"""Exact attention over a forest of tokens: a token sees the earlier tokens of its node, and the nodes it continues.

The tokens lie depth first, so the tokens that continue a node follow it without gaps. Attention is therefore a few
dense blocks: each node within itself (causal), and the tokens that continue a node over all of it. Their results are
merged by their log-sum-exp, as in ring attention (arXiv:2310.01889) and FlashAttention (arXiv:2205.14135). In backward
each block is given the merged result and log-sum-exp, so its part of the gradient is exact. Nothing that is masked is
computed, and no key is copied for a branch. On GPUs one FlexAttention call with a block mask does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from torch.utils._triton import has_triton

from .inputs import Segments

aten: Any = torch.ops.aten

#: FlexAttention's kernels multiply blocks of at least this many features.
NARROWEST_FLEX_HEAD = 16


def can_branch(device: torch.device, config: Any) -> bool:
    """Whether attention over a forest runs on ``device`` for a model of ``config``: on CPUs, and on GPUs that Triton
    knows if heads are wide enough."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return device.type == "cpu" or (device.type == "cuda" and has_triton() and head >= NARROWEST_FLEX_HEAD)


def attend_forest(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """``query`` [1, heads, N, D], ``key`` and ``value`` [1, kv heads, P + N, D] -> [1, N, heads, D], differentiable.

    The first P = ``segments.before`` keys are of a prefix that all tokens see.
    """
    if query.is_cuda:
        return _flex(query, key, value, segments, scale).transpose(1, 2).contiguous()
    nodes = torch.tensor(segments.nodes, dtype=torch.int64)
    out: Tensor = forest_attention(query, key, value, nodes, segments.before, scale)[0]
    return out.transpose(1, 2)


@library.custom_op("tau2_lightning::forest_attention", mutates_args=(), device_types="cpu")
def forest_attention(
    query: Tensor, key: Tensor, value: Tensor, nodes: Tensor, before: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention [1, heads, N, D] and its log-sum-exp [1, heads, N] float32. ``nodes`` [n, 3] int64."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    total = query.new_empty(query.shape[:3], dtype=torch.float32)
    for own, seen, causal in _blocks(nodes, before):
        part, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, own], key[:, :, seen], value[:, :, seen], 0.0, causal, scale=scale
        )
        if causal:  # a node's own block comes before all others that its tokens have a part in
            out[:, :, own], total[:, :, own] = part, log_sum
            continue
        known = total[:, :, own]
        after = torch.logaddexp(known, log_sum)
        merged = out[:, :, own].float() * (known - after).exp()[..., None] + part * (log_sum - after).exp()[..., None]
        out[:, :, own], total[:, :, own] = merged.to(out.dtype), after
    return out, total


@forest_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, nodes: Tensor, before: int, scale: float) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    return out, query.new_empty(query.shape[:3], dtype=torch.float32)


@library.custom_op("tau2_lightning::forest_attention_backward", mutates_args=(), device_types="cpu")
def _forest_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    nodes: Tensor,
    before: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    for own, seen, causal in _blocks(nodes, before):
        q, k, v = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad[:, :, own], query[:, :, own], key[:, :, seen], value[:, :, seen], out[:, :, own], total[:, :, own],
            0.0, causal, scale=scale,
        )  # fmt: skip
        grads[0][:, :, own] += q
        grads[1][:, :, seen] += k
        grads[2][:, :, seen] += v
    return grads[0], grads[1], grads[2]


@_forest_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, nodes, before, scale = inputs
    ctx.save_for_backward(query, key, value, *output, nodes)
    ctx.before, ctx.scale = before, scale


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, total, nodes = ctx.saved_tensors
    found = _forest_attention_backward(grad.contiguous(), query, key, value, out, total, nodes, ctx.before, ctx.scale)
    return (*found, None, None, None)


forest_attention.register_autograd(_backward, setup_context=_save)


def _blocks(nodes: Tensor, before: int) -> Iterator[tuple[slice, slice, bool]]:
    """Queries, keys, and whether causal, of every block; a node's own block before those of the nodes above it."""
    every = nodes.tolist()
    for start, end, _ in every:
        yield slice(start, end), slice(before + start, before + end), True
    for start, end, below in every:
        if below > end:
            yield slice(end, below), slice(before + start, before + end), False
    if before:
        yield slice(0, every[-1][1]), slice(0, before), False


# -- GPUs -----------------------------------------------------------------------------------------------------------


def _flex(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    out: Tensor = _compiled_flex()(
        query, key, value, block_mask=block_mask(segments, query.device), scale=scale, enable_gqa=True
    )
    return out


def block_mask(segments: Segments, device: torch.device) -> Any:
    """FlexAttention's mask of the forest: token j is seen by the tokens from j to ``below[j]``. Made once, then kept
    with ``segments``, because all layers use it."""
    from torch.nn.attention.flex_attention import create_block_mask

    if segments.flex_mask is None:
        below, before = segments.below(), segments.before
        size = len(below)
        # The prefix's keys come first, and all tokens see them.
        below = torch.cat([below.new_full((before,), size), below])

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key - before) & (query < below[key])

        make: Any = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
        segments.flex_mask = make(visible, None, None, size, before + size, device=device)
    return segments.flex_mask


@cache
def _compiled_flex() -> Any:
    """FlexAttention compiled once per process: uncompiled it makes the whole matrix of scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
