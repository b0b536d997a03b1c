"""Keys and values of a prefix that many micro-batches share, kept so that the prefix is computed once for all.

Tokens after a prefix depend on it by its keys and values only. So it goes through the model twice for any number of
micro-batches: before them without gradients, to record the keys and values of each layer, and after them, to carry the
gradients that the micro-batches left at those keys and values to the weights. The result is that of computing the
prefix in every micro-batch, up to the order of sums.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .autograd import apply

Role = Literal["record", "use", "return"]


class KeptPrefix:
    """The keys and values [1, heads, P, D] of each attention of a model, and float32 sums of their gradients."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._gradients: dict[nn.Module, list[Tensor]] = {}

    def record(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep the first ``length`` tokens of ``key`` and ``value`` [1, heads, N, D], which an attention made of the
        prefix; N is P filled up to what the layout needs."""
        kept = key.detach()[:, :, : self.length], value.detach()[:, :, : self.length]
        self._kept[module] = kept[0].clone(), kept[1].clone()

    def before(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values followed by ``key`` and ``value`` [1, heads, N, D]: [1, heads, P + N, D].

        Gradients of the former are added up. Raises KeyError when this attention has recorded nothing.
        """
        kept = self._kept[module]
        if torch.is_grad_enabled():
            if module not in self._gradients:
                self._gradients[module] = [torch.zeros_like(x, dtype=torch.float32) for x in kept]
            joined: tuple[Tensor, Tensor] = apply(_Joined, key, value, *kept, self._gradients[module])
            return joined
        return torch.cat([kept[0], key], 2), torch.cat([kept[1], value], 2)

    def returned(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """``key`` and ``value`` [1, heads, N, D] of the prefix itself, unchanged; in backward, what the micro-batches
        have left is added to the gradients of the first P tokens."""
        sums = self._gradients.get(module)
        if sums is not None:
            key, value = apply(_Returned, key, value, sums)
        return key, value


class _Joined(torch.autograd.Function):
    """Joins keys and values; adds the kept part's gradients to ``sums`` and passes on the others."""

    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, kept_key: Tensor, kept_value: Tensor, sums: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        ctx.sums, ctx.length = sums, kept_key.shape[2]
        return torch.cat([kept_key, key], 2), torch.cat([kept_value, value], 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        for total, grad in zip(ctx.sums, grads, strict=True):
            total += grad[:, :, : ctx.length]
        return grads[0][:, :, ctx.length :], grads[1][:, :, ctx.length :], None, None, None


class _Returned(torch.autograd.Function):
    """The identity; adds ``sums`` to the gradients of the first tokens."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, sums: list[Tensor]) -> tuple[Tensor, Tensor]:
        ctx.sums = sums
        return key.view_as(key), value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for grad, total in zip(grads, ctx.sums, strict=True):
            grad = grad.clone()
            grad[:, :, : total.shape[2]] += total.to(grad.dtype)
            found.append(grad)
        return found[0], found[1], None
