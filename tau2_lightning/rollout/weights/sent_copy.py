"""The trainer's copy of the weights that engines hold, in files, and the changes from one version to the next.

The copy takes 2 bytes per parameter of a bfloat16 model on rank 0's node (in shared memory, else in the temporary
folder), in every layout of the trainer, because rank 0 gathers full tensors anyway. Tensors are compared on the
trainer's device: the old tensor is copied there, and only positions and values of changed elements are copied back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tau2_lightning.rollout.engine.in_vllm.changes import Bits, Change, longer_than_all, pack, sparse
from tau2_lightning.rollout.engine.in_vllm.dense_files import DenseFiles

from .files import WeightFiles
from .wire import Bucket

Shapes = dict[str, tuple[torch.dtype, torch.Size]]
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Part:
    shapes: Shapes
    dense: DenseFiles
    digests: dict[str, str]


class SentCopy:
    """One file for each bucket, changed in place.

    ``changes`` are the files of what the newest version changed (`in_vllm.changes`). They are None if a bucket is new,
    or has other tensors than before: then there is nothing to compare with.
    """

    def __init__(self, files: WeightFiles) -> None:
        self._files = files
        self._parts: list[_Part] = []
        self._taken = 0
        self.changes: list[Path] | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the whole weights."""
        return tuple(path for part in self._parts for path in part.dense.paths)

    @property
    def digests(self) -> dict[str, str]:
        """The digests of all tensors (`DenseFiles.digest`)."""
        return {name: digest for part in self._parts for name, digest in part.digests.items()}

    def begin(self, *, in_place: bool) -> None:
        """Begin the next version. Without ``in_place`` its buckets are written to new files."""
        self.forget_changes()
        self._taken = 0
        if not in_place:
            self._parts = []
        self.changes = [] if self._parts else None

    def take(self, name: str, bucket: Bucket) -> None:
        """Update the copy of one bucket to the new version. Buckets come in the same order in every version."""
        shapes = {key: (tensor.dtype, tensor.shape) for key, tensor in bucket.items()}
        number, self._taken = self._taken, self._taken + 1
        if not shapes:
            self._taken = number
        elif number < len(self._parts) and self._parts[number].shapes == shapes:
            self._update(self._parts[number], name, bucket)
        else:
            dense = DenseFiles()
            dense.add(self._files.write(name, bucket))
            self._parts[number:] = [_Part(shapes, dense, dense.digests())]
            self.forget_changes()

    def end(self) -> None:
        """End the version: all its buckets have been taken."""
        if self._taken < len(self._parts):
            del self._parts[self._taken :]
            self.forget_changes()

    def forget_changes(self) -> None:
        """Remove the files of changes."""
        for path in self.changes or ():
            path.unlink(missing_ok=True)
        self.changes = None

    def _update(self, part: _Part, name: str, bucket: Bucket) -> None:
        found: dict[str, Change] = {}
        for key, tensor in bucket.items():
            change = update(part.dense.bits(key), tensor)
            if change is not None:
                found[key] = change
                part.digests[key] = part.dense.digest(key)
        if found and self.changes is not None:
            self.changes.append(self._files.write_bytes(f"{name}.changes", pack(found)))


def update(old: Bits, new: Tensor) -> Change | None:
    """Write the elements of ``new`` to ``old`` (flat, on the CPU); returns the change, None if all elements are equal.

    Elements are compared as bits, on the device of ``new``: NaN equals the same NaN, and -0.0 differs from 0.0.
    """
    now = new.reshape(-1).view(_SIGNED[new.itemsize])
    before = torch.from_numpy(old.view(np.dtype(f"<i{new.itemsize}"))).to(new.device)
    differs = now != before
    count = int(differs.sum())
    if not count:
        return None
    change = None
    # Otherwise positions, 8 bytes each, would be computed for nothing.
    if not longer_than_all(count, count, new.itemsize, len(old)):
        at = differs.nonzero()[:, 0]
        values, positions = now[at].cpu().numpy().view(old.dtype), at.cpu().numpy()
        change = sparse(positions, values, old[positions], len(old))
    if change is None:
        old[:] = now.cpu().numpy().view(old.dtype)
        return Change(None, old.copy())
    old[positions] = values
    return change
