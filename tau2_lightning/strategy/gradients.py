"""Gradient norm, clipping and tied embeddings where parameters live on different meshes and stages."""

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
        norm = torch.nn.utils.get_total_norm(group)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        squares += norm.float() ** 2
    if pp_group is not None:
        dist.all_reduce(squares, group=pp_group)
    return squares.sqrt()


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


class TiedGradient:
    """Keeps the two copies of a tied embedding matrix equal when the first and the last stage hold one each.

    Each stage computes its part of the gradient; the parts are added after every run of the schedule. What was
    accumulated before is set aside first, so that it is not added twice.
    """

    def __init__(self, weight: nn.Parameter, group: dist.ProcessGroup) -> None:
        self.weight, self.group = weight, group
        self._before: Tensor | None = None

    def set_aside(self) -> None:
        """Keep the gradient accumulated so far, and clear it."""
        self._before, self.weight.grad = self.weight.grad, None

    def combine(self) -> None:
        """Sum the new gradient over both stages and add what was set aside. Collective."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        grad = self.weight.grad
        dist.all_reduce(grad.to_local() if isinstance(grad, DTensor) else grad, group=self.group)
        if self._before is not None:
            grad += self._before
        self._before = None
