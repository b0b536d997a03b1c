"""Experts spread over data ranks: tokens travel to the rank that holds their expert and back (dropless)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.nn import functional as F

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


class SplitExperts(nn.Module):
    """Qwen3-MoE's experts (3-D weights, expert first), E/e of them on each rank of ``mesh``; names stay."""

    def __init__(self, experts: Any, mesh: DeviceMesh) -> None:
        super().__init__()
        self.group = mesh.get_group()
        self.held = experts.num_experts // mesh.size()
        self.num_experts, self.act_fn = experts.num_experts, experts.act_fn
        self.gate_up_proj = distribute(experts.gate_up_proj, mesh, Shard(0))
        self.down_proj = distribute(experts.down_proj, mesh, Shard(0))

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """``hidden`` [N, H], ``index`` and ``weights`` [N, k] -> weighted sum of the chosen experts [N, H]."""
        chosen = index.reshape(-1)
        order = chosen.argsort(stable=True)
        token = order // index.shape[1]
        counts = chosen.bincount(minlength=self.num_experts).view(-1, self.held)
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        send, receive = counts.sum(1).tolist(), arriving.sum(1).tolist()
        rows = _Route.apply(hidden[token], self.group, send, receive)
        # Rows arrive by source rank, then expert; experts want theirs together.
        expert = torch.arange(self.held, device=rows.device).repeat(len(receive)).repeat_interleave(arriving.flatten())
        together = expert.argsort(stable=True)
        parts = rows[together].split(arriving.sum(0).tolist())
        up, down = local(self.gate_up_proj).to(rows.dtype), local(self.down_proj).to(rows.dtype)
        done = torch.cat([self._expert(part, up[i], down[i]) for i, part in enumerate(parts)])
        back = _Route.apply(done[together.argsort()], self.group, receive, send)
        weighted = back * weights.reshape(-1)[order, None]
        return torch.zeros_like(hidden).index_add(0, token, weighted.to(hidden.dtype))

    def _expert(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gate, value = F.linear(x, up).chunk(2, dim=-1)
        return F.linear(self.act_fn(gate) * value, down)


def split_experts(layers: list[nn.Module], mesh: DeviceMesh) -> None:
    """Replace the experts of mixture-of-experts layers in place."""
    for layer in layers:
        mlp: Any = layer.mlp
        if hasattr(mlp, "experts"):
            mlp.experts = SplitExperts(mlp.experts, mesh)


class ExpertGradients:
    """Sums expert gradients over the ranks that hold the same experts; FSDP leaves these parameters alone.

    What had been accumulated before is set aside first, so that it is not summed twice.
    """

    def __init__(self, parameters: list[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self.group = parameters, group
        self._before: list[Tensor | None] = []

    def set_aside(self) -> None:
        self._before = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None

    def combine(self) -> None:
        for parameter, before in zip(self.parameters, self._before, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(local(parameter.grad), group=self.group)
            if before is not None:
                parameter.grad.add_(before)
        self._before = []
