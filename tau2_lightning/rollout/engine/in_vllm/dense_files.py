"""Safetensors files mapped into memory, whose tensors can be changed in place."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from .changes import Bits, Change

ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "BF16": 2, "F16": 2, "I16": 2, "U16": 2},
    **{"F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8},
}
HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Layout:
    """Dtype (safetensors' name for it) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class DenseFiles:
    """The tensors of safetensors files by name. ``paths`` are the files, in the order in which they were added."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.layouts: dict[str, Layout] = {}
        self._bits: dict[str, Bits] = {}

    def add(self, path: Path) -> None:
        """Map a file. Raises ValueError when it is not a safetensors file, or is incomplete."""
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(HEADER_LIMIT, size - 8):
                raise ValueError(f"{path.name}: not a safetensors file")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        mapped = np.memmap(path, np.uint8, "r+", offset=0)[8 + length :]
        for name, fields in header.items():
            item, shape = ITEM_BYTES[fields["dtype"]], tuple(fields["shape"])
            start, end = fields["data_offsets"]
            if not 0 <= start <= end <= len(mapped) or end - start != item * math.prod(shape):
                raise ValueError(f"{path.name}: {name} is incomplete")
            self.layouts[name] = Layout(fields["dtype"], shape)
            self._bits[name] = mapped[start:end].view(np.dtype(f"<u{item}"))
        self.paths.append(path)

    def bits(self, name: str) -> Bits:
        """The elements of a tensor as unsigned integers, flat and writable. Raises ValueError for an unknown name."""
        if name not in self._bits:
            raise ValueError(f"no tensor {name}")
        return self._bits[name]

    def apply(self, name: str, change: Change) -> None:
        """Change a tensor in place. Raises ValueError when the change does not fit it."""
        try:
            change.apply(self.bits(name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def digest(self, name: str) -> str:
        """XXH3 (128 bits) of a tensor's name, layout and bytes."""
        layout = self.layouts[name]
        state = xxhash.xxh3_128(f"{name} {layout.dtype} {list(layout.shape)}\n".encode())
        state.update(self._bits[name].view(np.uint8).data)
        return state.hexdigest()

    def digests(self) -> dict[str, str]:
        """``digest`` of every tensor."""
        return {name: self.digest(name) for name in self.layouts}
