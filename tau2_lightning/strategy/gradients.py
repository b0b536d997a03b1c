"""Gradient norm, clipping and sums where parameters live on different meshes and stages."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def total_norm(grads: Iterable[Tensor], pp_group: dist.ProcessGroup | None, device: torch.device) -> Tensor:
    """Euclidean norm of all gradients of the model, float32 scalar, equal on every rank. Collective.

    ``grads`` are this stage's, each counted once over the pipeline. They are grouped by mesh because torch's norm
    does not mix meshes.
    """
    by_mesh: dict[object, list[Tensor]] = {}
    for grad in grads:
        by_mesh.setdefault(grad.device_mesh if isinstance(grad, DTensor) else None, []).append(grad)
    squares = torch.zeros((), dtype=torch.float32, device=device)
    for group in by_mesh.values():
        squares += _norm(group).to(device) ** 2
    if pp_group is not None:
        dist.all_reduce(squares, group=pp_group)
    return squares.sqrt()


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of tensors of one mesh, float32; what is stored in fewer bits is added up in float32, too."""
    narrow = [tensor for tensor in tensors if tensor.dtype != torch.float32]
    whole = [tensor for tensor in tensors if tensor.dtype == torch.float32]
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in narrow]
    norms += [torch.nn.utils.get_total_norm(whole)] if whole else []
    # Each is summed over its mesh by itself: partial norms would not add up.
    full = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.stack(full).norm() if len(full) > 1 else full[0]


def scale(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Multiply gradients by min(1, max_norm / (norm + 1e-6)), torch's own formula."""
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    by_mesh: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            grad = parameter.grad
            local = grad.to_local() if isinstance(grad, DTensor) else grad
            by_mesh.setdefault((local.device, local.dtype), []).append(local)
    for grads in by_mesh.values():
        torch._foreach_mul_(grads, factor.to(grads[0].device))


class SummedGradients:
    """Sums gradients over ranks that hold the same ``parameters`` and each compute a part of their gradient.

    Examples are the two copies of a tied embedding on the first and the last stage, and a router under t. The parts are
    added after every run of the micro-batches. What was accumulated before is set aside first, so that it is not added
    twice.
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
            grad = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            if grad.numel():  # the ranks of the group hold the same shard, so all of them skip an empty one
                dist.all_reduce(grad, group=self.group)
            if before is not None:
                parameter.grad.add_(before)
        self._before = []
