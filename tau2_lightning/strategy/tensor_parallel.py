"""Layers whose weights are split over the tensor-parallel group, with sequence-parallel activations between them.

Weights are DTensors on the ``tp`` mesh, so FSDP, optimizers and checkpoints know the full shape; computation runs on
their local shards with explicit collectives. Dispatching every operation through DTensor costs milliseconds per layer,
and transformers' own plan is wrong under gradient accumulation. Between blocks each rank holds T/t positions, so norms
and residuals are neither computed nor stored t times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional as F

from .collectives import copy_to_group, gather_sequence, sum_scatter_sequence
from .families.family import TensorPlan
from .modules import find, put


def local(parameter: Tensor) -> Tensor:
    """This rank's shard, differentiable."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def distribute(parameter: Tensor, mesh: DeviceMesh, placement: Shard | Replicate) -> nn.Parameter:
    """This rank's part of a parameter that every rank holds whole. No communication; the full tensor is not kept."""
    full = parameter.detach()
    part = full
    if isinstance(placement, Shard):
        chunks = full.chunk(mesh.size(), dim=placement.dim)
        rank = mesh.get_local_rank()
        part = chunks[rank] if rank < len(chunks) else full.narrow(placement.dim, 0, 0)
    sharded = DTensor.from_local(
        part.clone(), mesh, [placement], run_check=False, shape=full.shape, stride=full.stride()
    )
    return nn.Parameter(sharded, requires_grad=parameter.requires_grad)


class ColumnLinear(nn.Module):
    """A linear layer of which each rank computes some output features. Its input must sum gradients over the group."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self.weight = distribute(linear.weight, mesh, Shard(0))
        self.bias = None if linear.bias is None else distribute(linear.bias, mesh, Shard(0))
        self.adapter: nn.Module | None = None  # see lora.Adapter

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))
        return out + self.adapter(x) if self.adapter is not None and self.adapter.enabled else out


class RowLinear(nn.Module):
    """A linear layer of which each rank holds some input features. Returns this rank's positions of the sum."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self.group = mesh.get_group()
        self.weight = distribute(linear.weight, mesh, Shard(1))
        self.bias = None if linear.bias is None else distribute(linear.bias, mesh, Replicate())
        self.adapter: nn.Module | None = None  # see lora.Adapter

    def forward(self, x: Tensor) -> Tensor:
        partial = F.linear(x, local(self.weight))
        if self.adapter is not None and self.adapter.enabled:
            partial = partial + self.adapter(x)
        out = sum_scatter_sequence(partial, self.group)
        # Each rank adds the bias at its own positions, so each has a part of its gradient.
        return out if self.bias is None else out + copy_to_group(local(self.bias), self.group)


class VocabEmbedding(nn.Module):
    """An embedding split by vocabulary. [B, T] ids on every rank -> this rank's positions [B, T/t, H]."""

    def __init__(self, embedding: nn.Embedding, mesh: DeviceMesh, scale: float | None = None) -> None:
        super().__init__()
        self.group, self.scale, self.padding = mesh.get_group(), scale, embedding.padding_idx
        self.weight = distribute(embedding.weight, mesh, Shard(0))

    def forward(self, ids: Tensor) -> Tensor:
        weight = local(self.weight)
        index = ids - vocab_start(self.weight)
        mine = (index >= 0) & (index < weight.shape[0])
        # As in a whole embedding, the row of the padding token is not trained.
        padding = None if self.padding is None else self.padding - vocab_start(self.weight)
        untrained = padding if padding is not None and 0 <= padding < weight.shape[0] else None
        rows = F.embedding(index.clamp(0, max(weight.shape[0] - 1, 0)), weight, untrained)
        if self.scale is not None:
            rows = rows * torch.tensor(self.scale, dtype=rows.dtype)  # rounded like the rows, as transformers does
        return sum_scatter_sequence(rows * mine[..., None], self.group)


class VocabHead(ColumnLinear):
    """An output head split by vocabulary. Takes replicated rows [N, H], returns this rank's logits [N, V/t]."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__(linear, mesh)
        self.group = mesh.get_group()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(copy_to_group(x, self.group))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` [..., D] over its root mean square, times ``weight`` [D]; computed in float32, as transformers does."""
    wide = x.to(torch.float32)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def centred_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` [..., D] over its root mean square, times 1 + ``weight`` [D]; computed and multiplied in float32."""
    wide = x.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * (1.0 + weight.float())).to(x.dtype)


class SplitNorm(nn.Module):
    """RMS norm over a part of the positions or heads: gradients of its weight are summed over the tensor ranks.

    ``formula`` is what computes it: `rms_norm` (or one with the same result), or `centred_rms_norm` where weights are
    ``centred`` on 0.
    """

    def __init__(self, norm: Any, mesh: DeviceMesh, *, centred: bool = False) -> None:
        super().__init__()
        self.group = mesh.get_group()
        self.eps: float = norm.eps if centred else norm.variance_epsilon
        self.formula: Callable[[Tensor, Tensor, float], Tensor] = centred_rms_norm if centred else rms_norm
        self.weight = distribute(norm.weight, mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, copy_to_group(local(self.weight), self.group), self.eps)


def vocab_start(weight: Tensor) -> int:
    """First vocabulary row of a local shard (torch's chunking: ceil(V / t) rows per rank); 0 when not split."""
    if not isinstance(weight, DTensor) or not any(isinstance(p, Shard) for p in weight.placements):
        return 0
    mesh = weight.device_mesh
    rows = -(-weight.shape[0] // mesh.size())
    return min(rows * mesh.get_local_rank(), weight.shape[0])


def split_layer(layer: nn.Module, plan: TensorPlan, mesh: DeviceMesh, *, centred: bool = False) -> None:
    """Replace the parts of one decoder layer in place, as its family's ``plan`` says; parameter names stay.

    ``centred``: weights of norms are centred on 0.
    """
    norm = partial(SplitNorm, centred=centred)
    for names, make in ((plan.columns, ColumnLinear), (plan.rows, RowLinear), (plan.norms, norm)):
        for name in names:
            module = find(layer, name)
            if module is not None:
                put(layer, name, make(module, mesh))
    # One gather serves all column layers of a block; its gradient is their sum over ranks.
    for name in plan.gathers:
        block = find(layer, name)
        if any(isinstance(module, ColumnLinear) for module in block.modules()):
            block.register_forward_pre_hook(_gatherer(mesh.get_group()), with_kwargs=True)


def _gatherer(group: dist.ProcessGroup) -> Any:
    def gather(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": gather_sequence(kwargs["hidden_states"], group)}
        return (gather_sequence(args[0], group), *args[1:]), kwargs

    return gather
