"""The reference policy of a KL term: the weights that training started from, under any layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .archon import ArchonStrategy


class ReferencePolicy:
    """The policy as it was at construction.

    With LoRA it is the base model with its adapters off, and no second copy of the weights is kept. Otherwise each rank
    keeps a copy of its own shards, which takes as much memory as the parameters.
    """

    def __init__(self, strategy: ArchonStrategy, policy: nn.Module) -> None:
        self._strategy, self._policy = strategy, policy
        self._weights = [] if strategy.lora else [parameter.detach().clone() for parameter in policy.parameters()]

    def active(self) -> AbstractContextManager[None]:
        """Inside the ``with`` block the strategy computes with the reference policy."""
        return self._strategy.base_only() if self._strategy.lora else self._swapped()

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        parameters = list(self._policy.parameters())
        trained = [parameter.detach().clone() for parameter in parameters]
        _copy(parameters, self._weights)
        try:
            yield
        finally:
            _copy(parameters, trained)


@torch.no_grad()
def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
