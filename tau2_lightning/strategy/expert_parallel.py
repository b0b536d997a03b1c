"""Experts spread over data ranks: tokens travel to the rank that holds their expert and back; none is dropped."""

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
from .tensor_parallel import distribute, local


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
    rows: Tensor = apply(_Route, x, group, send, receive)
    return rows


def exchange_counts(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Row r of ``counts`` [ranks, n] int64 goes to rank r; returns what arrived, [ranks, n]. Collective."""
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=group)
    return arriving


class ExpertShard(nn.Module):
    """Base of a family's experts when each rank of ``mesh`` holds ``held`` of ``num_experts``."""

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


class ExpertGradients:
    """Sums expert gradients over the ranks that hold the same experts; FSDP does not handle these parameters.

    What was accumulated before is set aside first, so that it is not summed twice.
    """

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self.group = parameters, group
        self._before: list[Tensor | None] = []

    def set_aside(self) -> None:
        """Keep the gradients accumulated so far, and clear them."""
        self._before = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None

    def combine(self) -> None:
        """Sum the new gradients over the group and add what was set aside. Collective."""
        for parameter, before in zip(self.parameters, self._before, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(local(parameter.grad), group=self.group)
            if before is not None:
                parameter.grad.add_(before)
        self._before = []
