"""Buckets of full tensors as safetensors files in shared memory, for engines on the same machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout
from safetensors.torch import save_file

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # shared memory is the point; the folder inside it is private (0700)
PREFIX = "tau2-lightning-"
LOCK = ".in-use"


class WeightFiles:
    """A private folder (mode 0700) for weight files, in ``/dev/shm`` where that has room, else in the temporary folder.

    Folders of processes that are gone are removed when a new one is made; this one is removed with the object. A lock
    on a file inside says that a folder is in use, also to processes of other containers that share the memory but know
    other process ids.
    """

    def __init__(self, shared: Path = SHARED_MEMORY, fallback: Path | None = None) -> None:
        self._fallback = fallback or Path(tempfile.gettempdir())
        usable = [root for root in (shared, self._fallback) if root.is_dir() and os.access(root, os.W_OK)]
        for root in usable:
            _remove_orphans(root)
        self._folders = [Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)) for root in usable]
        locks = [_lock(folder) for folder in self._folders]
        for lock in locks:
            lock.acquire()
        self._finalizer = weakref.finalize(self, _remove, self._folders, locks)

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


def _remove(folders: list[Path], locks: list[BaseFileLock]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for lock in locks:
        lock.release()


def _lock(folder: Path) -> BaseFileLock:
    """Held while the folder is in use; the kernel lets go of it when its process is gone."""
    return FileLock(folder / LOCK, timeout=0, thread_local=False)  # whichever thread removes the folder


def _remove_orphans(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        if not (folder / LOCK).is_file():
            continue  # just being made
        lock = _lock(folder)
        with suppress(Timeout, OSError):  # in use, or another user's
            lock.acquire()
            _remove([folder], [lock])
