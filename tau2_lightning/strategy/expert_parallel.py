"""Experts spread over the d x c x t ranks of a stage: tokens travel to the rank that holds their expert and back.

Every rank routes its own positions: its rows under d, its slice of them under c, and of that slice its part under t. So
every token is routed once, and none is dropped. A gradient is the sum over the ranks that hold the same experts; FSDP
makes it, because these ranks shard them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard

from .autograd import apply
from .modules import find, put
from .tensor_parallel import distribute


class _Route(torch.autograd.Function):
    """All-to-all of rows with uneven counts; the gradient travels the same way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
        ctx.group, ctx.send, ctx.receive = group, send, receive
        return _all_to_all(x, group, send, receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grad, ctx.group, ctx.receive, ctx.send), None, None, None


def _all_to_all(x: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


def route(x: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
    """Send the first ``send[0]`` rows of ``x`` to rank 0, and so on; return the rows that arrived, by source rank.

    Differentiable. Collective.
    """
    if len(send) == 1:
        return x
    rows: Tensor = apply(_Route, x, group, send, receive)
    return rows


def exchange_counts(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Row r of ``counts`` [ranks, n] int64 goes to rank r; returns what arrived, [ranks, n]. Collective."""
    if len(counts) == 1:
        return counts
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=group)
    return arriving


class ExpertShard(nn.Module):
    """Base of a family's experts when each rank of ``mesh`` holds ``held`` of ``num_experts``.

    FSDP shards what a rank holds over the ranks that hold the same.
    """

    def __init__(self, num_experts: int, mesh: DeviceMesh) -> None:
        super().__init__()
        self.num_experts, self.held = num_experts, num_experts // mesh.size()
        self.mesh, self.group = mesh, mesh.get_group()

    def share_out(self, parameter: Tensor) -> nn.Parameter:
        """This rank's experts of a parameter whose first dimension counts experts."""
        return distribute(parameter, self.mesh, Shard(0))


def split_experts(
    layers: Iterable[nn.Module], name: str, split: Callable[[Any, DeviceMesh], nn.Module], mesh: DeviceMesh
) -> None:
    """Replace the module called ``name`` in each of ``layers`` that has one by ``split(module, mesh)``, in place."""
    for layer in layers:
        experts = find(layer, name)
        if experts is not None:
            put(layer, name, split(experts, mesh))
