"""Buckets of full tensors as safetensors files in shared memory, for engines on the same machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # shared memory is the point; the folder inside it is private (0700)
PREFIX = "tau2-lightning-"


class WeightFiles:
    """A private folder (mode 0700) for weight files, in ``/dev/shm`` where that has room, else in the temporary folder.

    Folders of processes that are gone are removed when a new one is made; this one is removed with the object.
    """

    def __init__(self, shared: Path = SHARED_MEMORY, fallback: Path | None = None) -> None:
        self._fallback = fallback or Path(tempfile.gettempdir())
        usable = [root for root in (shared, self._fallback) if root.is_dir() and os.access(root, os.W_OK)]
        for root in usable:
            _remove_orphans(root)
        self._folders = [Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root)) for root in usable]
        self._finalizer = weakref.finalize(self, _remove, self._folders)

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        """Write one file; returns its path. Raises OSError when neither place has room."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        roomy = [folder for folder in self._folders if shutil.disk_usage(folder).free > size + (16 << 20)]
        if not roomy:
            raise OSError(f"no room for {size / 2**30:.2f} GiB of weights in {', '.join(map(str, self._folders))}")
        path = roomy[0] / f"{name}.safetensors"
        save_file(tensors, path)
        return path

    def close(self) -> None:
        """Remove the folder and everything in it."""
        self._finalizer()


def buckets(
    tensors: Iterable[tuple[str, torch.Tensor]], limit: int, *, on_cpu: bool = True
) -> Iterator[dict[str, torch.Tensor]]:
    """Group full tensors into contiguous buckets of at most ``limit`` bytes; one larger tensor is a bucket of its own.

    ``on_cpu`` copies tensors of other devices to the CPU; otherwise they stay where they are.
    """
    bucket: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > limit:
            yield bucket
            bucket, size = {}, 0
        tensor = tensor.detach()
        bucket[name] = (tensor.to("cpu") if on_cpu else tensor).contiguous()
        size += tensor.nbytes
    if bucket:
        yield bucket


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}[0-9]*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if folder.is_dir() and owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
