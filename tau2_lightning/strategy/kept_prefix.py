"""Keys and values of a prefix that many micro-batches share, kept so that the prefix is computed once for all.

Tokens after a prefix depend on it by its keys and values only. So it goes through the model twice for any number of
micro-batches: before them without gradients, to record the keys and values of each layer, and after them, to carry the
gradients that the micro-batches left at those keys and values to the weights. The result is that of computing the
prefix in every micro-batch, up to the order of sums. A prefix may continue another one: to that, it is one more
micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tau2_lightning.microbatch import Trunk

from .autograd import apply

Role = Literal["record", "return"]


class Kept(NamedTuple):
    """What the tokens of a micro-batch see of prefixes: key, value, key, value... [1, heads, P, D], the first prefix
    first, and for each the float32 sum that its gradient is added to (none where gradients are off)."""

    values: list[Tensor]
    sums: list[Tensor]


NOTHING = Kept([], [])


class KeptPrefix:
    """The keys and values [1, heads, P, D] of each attention of a model, and float32 sums of their gradients.

    ``size`` is P, the tokens of this prefix itself; it continues ``parent``.
    """

    def __init__(self, size: int, parent: KeptPrefix | None = None) -> None:
        self.size, self.parent = size, parent
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._gradients: dict[nn.Module, list[Tensor]] = {}

    @property
    def length(self) -> int:
        """Number of tokens, with those of the parents."""
        return self.size + (self.parent.length if self.parent is not None else 0)

    def record(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep the first P tokens of ``key`` and ``value`` [1, heads, N, D], which an attention made of the prefix; N
        is P filled up to what the layout needs."""
        kept = key.detach()[:, :, : self.size], value.detach()[:, :, : self.size]
        self._kept[module] = kept[0].clone(), kept[1].clone()

    def seen(self, module: nn.Module) -> Kept:
        """The keys and values of the parents and of this prefix. Raises KeyError when this attention has recorded
        none."""
        before = self.parent.seen(module) if self.parent is not None else NOTHING
        kept, sums = self._kept[module], list[Tensor]()
        if torch.is_grad_enabled():
            if module not in self._gradients:
                self._gradients[module] = [torch.zeros_like(x, dtype=torch.float32) for x in kept]
            sums = self._gradients[module]
        return Kept([*before.values, *kept], [*before.sums, *sums])

    def returned(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """``key`` and ``value`` [1, heads, N, D] of the prefix itself, unchanged; in backward, what the micro-batches
        have left is added to the gradients of the first P tokens. Frees what was recorded: no other pass needs it."""
        self._kept.pop(module, None)
        sums = self._gradients.get(module)
        if sums is not None:
            key, value = apply(_Returned, key, value, sums)
        return key, value

    def forget(self) -> None:
        """Free everything."""
        self._kept.clear()
        self._gradients.clear()


Trunks = dict[Trunk | None, KeptPrefix]


def keep(trunks: Iterable[Trunk | None]) -> Trunks:
    """Empty prefixes of these trunks and of those that they continue."""
    kept: Trunks = {}
    for each in (each for trunk in trunks if trunk is not None for each in trunk.path()):
        if each not in kept:
            kept[each] = KeptPrefix(each.input_ids.shape[1], kept.get(each.parent))
    return kept


def joined(key: Tensor, value: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """The keys and values that are ``kept``, followed by ``key`` and ``value`` [1, heads, N, D], as new tensors for a
    kernel that takes no others. Gradients of the former are added to their sums."""
    if not kept.values:
        return key, value
    found: tuple[Tensor, Tensor] = apply(_Joined, key, value, kept)
    return found


class _Joined(torch.autograd.Function):
    """Joins keys and values; adds the kept part's gradients to its sums and passes on the others."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
        ctx.sums = kept.sums
        return torch.cat([*kept.values[::2], key], 2), torch.cat([*kept.values[1::2], value], 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = []
        for grad, sums in zip(grads, (ctx.sums[::2], ctx.sums[1::2]), strict=True):
            sizes = [total.shape[2] for total in sums]
            *parts, own = grad.split([*sizes, grad.shape[2] - sum(sizes)], 2)
            for total, part in zip(sums, parts, strict=True):
                total += part
            found.append(own)
        return found[0], found[1], None


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
