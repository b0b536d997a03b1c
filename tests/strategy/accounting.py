"""The peak tensor memory of a piece of code, tensor by tensor, and the amount that it reads of a model's files."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tau2_lightning.strategy.hf_files import ModelFiles


class CountedFiles(ModelFiles):
    """Files of a model that count what is read from them: ``bytes_read`` in total, ``largest_read`` in one read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bytes_read = self.largest_read = 0

    def read(self, name: str, region: tuple[slice, ...]) -> Tensor:
        part = super().read(name, region)
        self.bytes_read += part.nbytes
        self.largest_read = max(self.largest_read, part.nbytes)
        return part


class LiveBytes(TorchDispatchMode):
    """Bytes of CPU tensors that operators have made and that are still alive; ``peak`` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu":
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key and key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
