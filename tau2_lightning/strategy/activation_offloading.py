"""What the backward pass needs, kept in the host's memory until then."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

#: Smaller tensors stay: a copy costs more than they take.
SMALLEST_BYTES = 1 << 20


class _OnHost(NamedTuple):
    values: Tensor
    device: torch.device


class ActivationsOnHost(saved_tensors_hooks):
    """A context whose forward passes keep saved tensors of `SMALLEST_BYTES` or more in the host's memory.

    Parameters stay where they are. Copies run in the order of the device's stream, so a value is complete before it is
    used. With activation checkpointing only the inputs of layers are saved here; what a layer computes again in
    backward stays on the device. ``bytes`` counts what has been copied to the host.
    """

    def __init__(self, smallest: int = SMALLEST_BYTES) -> None:
        self.smallest, self.bytes = smallest, 0
        super().__init__(self._pack, self._unpack)

    def __enter__(self) -> ActivationsOnHost:  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, saved: Tensor) -> Any:
        if saved.nbytes < self.smallest or _is_parameter(saved):
            return saved
        self.bytes += saved.nbytes
        host = torch.empty_like(saved, device="cpu", requires_grad=False, pin_memory=saved.is_cuda)
        return _OnHost(host.copy_(saved.detach(), non_blocking=True), saved.device)

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _OnHost):
            found: Tensor = packed
            return found
        return packed.values.to(packed.device, non_blocking=True)


def _is_parameter(tensor: Tensor) -> bool:
    base = tensor._base if tensor._is_view() else tensor
    return isinstance(base, nn.Parameter)
