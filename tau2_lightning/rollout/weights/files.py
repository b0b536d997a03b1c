"""Weight files: buckets of full tensors in shared memory, as safetensors, for engines on the same machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

import torch
from filelock import BaseFileLock, FileLock, Timeout
from safetensors.torch import save_file

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # the folder inside it is private (0700)
PREFIX = "tau2-lightning-"
LOCK = ".in-use"


class WeightFiles:
    """A private folder (mode 0700) for weight files: in ``shared`` where that has room, else in ``fallback``.

    ``fallback`` is the temporary folder unless given. The folder is removed together with the object. Folders of
    processes that have died are removed when a new one is made. A lock on a file inside marks a folder as used; process
    ids would not do, because containers that share the memory have different ones.
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
        """Write one file; returns its path. Raises OSError when neither folder has room."""
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


def _remove(folders: list[Path], locks: list[BaseFileLock]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    for lock in locks:
        lock.release()


def _lock(folder: Path) -> BaseFileLock:
    """Held while the folder is in use; the kernel releases it when the process dies."""
    return FileLock(folder / LOCK, timeout=0, thread_local=False)  # any thread may remove the folder


def _remove_orphans(root: Path) -> None:
    for folder in root.glob(f"{PREFIX}*"):
        if not (folder / LOCK).is_file():
            continue  # another process is just making it
        lock = _lock(folder)
        with suppress(Timeout, OSError):  # it is in use, or another user's
            lock.acquire()
            _remove([folder], [lock])
