"""Exact attention over a forest of tokens: a token sees the earlier tokens of its node, and the nodes it continues.

The tokens lie depth first, so the tokens that continue a node follow it without gaps. Attention is therefore a few
dense blocks: each node within itself (causal), and the tokens that continue a node over all of it. Their results are
merged by their log-sum-exp, as in ring attention (arXiv:2310.01889) and FlashAttention (arXiv:2205.14135). In backward
each block is given the merged result and log-sum-exp, so its part of the gradient is exact. Nothing that is masked is
computed, and no key is copied for a branch. On GPUs one FlexAttention call with a block mask does the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, library
from torch.utils._triton import has_triton

from .inputs import Segments
from .kept_prefix import NOTHING, Kept, joined

aten: Any = torch.ops.aten

#: FlexAttention's kernels multiply blocks of at least this many features.
NARROWEST_FLEX_HEAD = 16


def can_branch(device: torch.device, config: Any) -> bool:
    """Whether attention over a forest runs on ``device`` for a model of ``config``: on CPUs, and on GPUs that Triton
    knows if heads are wide enough."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return device.type == "cpu" or (device.type == "cuda" and has_triton() and head >= NARROWEST_FLEX_HEAD)


def attend_forest(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, kept: Kept = NOTHING
) -> Tensor:
    """``query`` [1, heads, N, D], ``key`` and ``value`` [1, kv heads, N, D] -> [1, N, heads, D], differentiable.

    All tokens also see the ``segments.before`` keys and values that are ``kept`` of a prefix.
    """
    if query.is_cuda:
        return _flex(query, *joined(key, value, kept), segments, scale).transpose(1, 2).contiguous()
    nodes = torch.tensor(segments.nodes, dtype=torch.int64)
    out: Tensor = forest_attention(query, key, value, nodes, kept.values, kept.sums, scale)[0]
    return out.transpose(1, 2)


@library.custom_op("tau2_lightning::forest_attention", mutates_args=(), device_types="cpu")
def forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    nodes: Tensor,
    kept: Sequence[Tensor],
    sums: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention [1, heads, N, D] and its log-sum-exp [1, heads, N] float32. ``nodes`` [n, 3] int64.

    ``kept`` and ``sums`` are those of `Kept`; backward adds the gradients of ``kept`` to ``sums``.
    """
    out, total = _results(query)
    for own, keys, values, causal in _parts(key, value, nodes, kept):
        part, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, own], keys, values, 0.0, causal, scale=scale
        )
        if causal:  # a node's own block comes before all others that its tokens have a part in
            out[:, :, own], total[:, :, own] = part, log_sum
            continue
        known = total[:, :, own]
        after = torch.logaddexp(known, log_sum)
        out[:, :, own].mul_((known - after).exp_()[..., None]).add_(part.mul_((log_sum - after).exp_()[..., None]))
        total[:, :, own] = after
    return out, total


def _results(query: Tensor) -> tuple[Tensor, Tensor]:
    """Room for attention, whose tokens lie together as the output projection reads them, and for its log-sum-exp."""
    rows, heads, tokens, features = query.shape
    out = query.new_empty(rows, tokens, heads, features).transpose(1, 2)
    return out, query.new_empty(rows, heads, tokens, dtype=torch.float32)


@forest_attention.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _results(query)


@library.custom_op("tau2_lightning::forest_attention_backward", mutates_args=("sums",), device_types="cpu")
def _forest_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    nodes: Tensor,
    kept: Sequence[Tensor],
    sums: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    every = _parts(grads[1], grads[2], nodes, sums)
    for (own, keys, values, causal), (_, key_sum, value_sum, _) in zip(
        _parts(key, value, nodes, kept), every, strict=True
    ):
        q, k, v = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad[:, :, own], query[:, :, own], keys, values, out[:, :, own], total[:, :, own], 0.0, causal, scale=scale
        )
        grads[0][:, :, own] += q
        key_sum.add_(k)
        value_sum.add_(v)
    return grads[0], grads[1], grads[2]


@_forest_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, nodes, ctx.kept, ctx.sums, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, nodes)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    query, key, value, out, total, nodes = ctx.saved_tensors
    found = _forest_attention_backward(grad, query, key, value, out, total, nodes, ctx.kept, ctx.sums, ctx.scale)
    return (*found, None, [None] * len(ctx.kept), [None] * len(ctx.sums), None)


forest_attention.register_autograd(_backward, setup_context=_save)


def _parts(
    key: Tensor, value: Tensor, nodes: Tensor, kept: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor, bool]]:
    """Queries, keys, values, and whether causal, of every block; ``kept`` as in `Kept`."""
    before = sum(each.shape[2] for each in kept[::2])
    for own, seen, causal in _blocks(nodes, before):
        if seen.stop > before:
            at = slice(seen.start - before, seen.stop - before)
            yield own, key[:, :, at], value[:, :, at], causal
        else:
            for pair in zip(kept[::2], kept[1::2], strict=True):
                yield own, *pair, False


def _blocks(nodes: Tensor, before: int) -> Iterator[tuple[slice, slice, bool]]:
    """Queries, keys, and whether causal, of every block; a node's own block before those of the nodes above it. The
    ``before`` keys of a prefix are numbered before the others."""
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
