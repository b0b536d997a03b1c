"""Differentiable collectives of tensor, sequence and context parallelism. Group None means a group of one: identity.

Each states what its gradient is; together they are the conjugate pairs of Megatron-LM (arXiv:2205.05198) and the
head-for-sequence exchange of DeepSpeed-Ulysses (arXiv:2309.14509).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autograd import apply

Group = dist.ProcessGroup | None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, summed: bool) -> Tensor:
        ctx.group, ctx.summed = group, summed
        return _all_gather(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.summed:
            return _reduce_scatter(grad, ctx.group), None, None
        return grad.chunk(ctx.group.size(), dim=1)[ctx.group.rank()], None, None


class _SumScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _all_gather(grad, ctx.group), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
        ctx.group, ctx.split, ctx.join = group, split, join
        return _all_to_all(x, group, split, join)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grad, ctx.group, ctx.join, ctx.split), None, None, None


def copy_to_group(x: Tensor, group: Group) -> Tensor:
    """Identity; gradients are summed over the group."""
    if group is None:
        return x
    out: Tensor = apply(_Copy, x, group)
    return out


def gather_sequence(x: Tensor, group: Group, *, summed: bool = True) -> Tensor:
    """[B, T/n, ...] -> [B, T, ...]. Gradient: with ``summed`` the group's sum of this rank's slice (each rank made a
    part of it), else just this rank's slice (every rank computed the same)."""
    if group is None:
        return x
    out: Tensor = apply(_Gather, x, group, summed)
    return out


def sum_scatter_sequence(x: Tensor, group: Group) -> Tensor:
    """Partial sums [B, T, ...] -> this rank's slice of the total [B, T/n, ...]. Gradient: gathered."""
    if group is None:
        return x
    out: Tensor = apply(_SumScatter, x, group)
    return out


def exchange(x: Tensor, group: Group, *, split: int, join: int) -> Tensor:
    """All-to-all: dimension ``split`` is cut over the group, dimension ``join`` is put together from it."""
    if group is None:
        return x
    out: Tensor = apply(_Exchange, x, group, split, join)
    return out


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    first = x.transpose(0, 1).contiguous()
    out = first.new_empty((first.shape[0] * group.size(), *first.shape[1:]))
    dist.all_gather_into_tensor(out, first, group=group)
    return out.transpose(0, 1).contiguous()


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    first = x.transpose(0, 1).contiguous()
    out = first.new_empty((first.shape[0] // group.size(), *first.shape[1:]))
    dist.reduce_scatter_tensor(out, first, group=group)
    return out.transpose(0, 1).contiguous()


def _all_to_all(x: Tensor, group: dist.ProcessGroup, split: int, join: int) -> Tensor:
    send = torch.stack(x.chunk(group.size(), dim=split)).contiguous()
    received = torch.empty_like(send)
    dist.all_to_all_single(received, send, group=group)
    return torch.cat(received.unbind(0), dim=join)
