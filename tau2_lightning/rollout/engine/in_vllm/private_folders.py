"""Folders for weight files. Only this user can read them, and they are removed at the end, even after a kill."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # the folder inside it is private (0700)
PREFIX = "tau2-lightning-"
LOCK = ".in-use"
SPARE_BYTES = 16 << 20


class PrivateFolders:
    """One private folder (mode 0700) in each writable folder of ``roots``, in order of preference.

    The folders are removed together with the object. Folders of processes that died are removed when new ones are made.
    A lock on a file inside shows that a folder is in use. Process ids cannot show this, because containers that share
    the memory number their processes differently.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        usable = [root for root in roots if root.is_dir() and os.access(root, os.W_OK)]
        for root in usable:
            _remove_orphans(root)
        self._folders = [Path(tempfile.mkdtemp(prefix=PREFIX, dir=root)) for root in usable]
        locks = [_lock(folder) for folder in self._folders]
        for lock in locks:
            lock.acquire()
        self._finalizer = weakref.finalize(self, _remove, self._folders, locks)

    @classmethod
    def default(cls) -> PrivateFolders:
        """Folders in shared memory and, for when that is full, in the temporary folder."""
        return cls((SHARED_MEMORY, Path(tempfile.gettempdir())))

    def roomy(self, size: int) -> Path:
        """The first folder with room for ``size`` bytes. Raises OSError when none has."""
        for folder in self._folders:
            if shutil.disk_usage(folder).free > size + SPARE_BYTES:
                return folder
        raise OSError(f"no room for {size / 2**30:.2f} GiB of weights in {', '.join(map(str, self._folders))}")

    def close(self) -> None:
        """Remove the folders and everything in them. Safe to call twice."""
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
