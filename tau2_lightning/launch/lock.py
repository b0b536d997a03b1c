"""The lock of a run folder or of an engine: one run at a time uses it, and a second one learns which.

Two things hold a folder. The kernel's lock on ``run.lock`` ends with the process, however it ends, and decides on one
machine. The owner that is written into the file decides where the kernel's lock does not reach: between machines.
The package filelock has no owner to read and no way to write one through the descriptor that it locks.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import psutil

from tau2_lightning.errors import ConfigError, Violation

LOCK = "run.lock"


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder. ``started`` is its start (seconds since the epoch): ids of processes return.

    ``job`` is the scheduler's job, empty without one; a job that is requeued is the successor of its earlier start.
    """

    host: str
    pid: int
    started: float
    since: str
    job: str = ""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()) or 0.0, since, _job())

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """The owner that a lock file names; None for an empty file, or one that was cut off while it was written."""
        with suppress(ValueError, TypeError):
            found: dict[str, Any] = orjson.loads(content)
            return cls(**found)
        return None

    @property
    def lives(self) -> bool:
        """Whether this process of this machine still runs."""
        started = _start_of(self.pid)
        return started is not None and abs(started - self.started) < 1.0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """Holds the folder ``root`` from ``acquire`` to ``release`` (or inside its ``with`` block).

    ``key`` and ``value`` are what the error names: by default the run's ``trial_name``, which is the folder's name.
    """

    def __init__(self, root: Path, key: str = "trial_name", value: str | None = None) -> None:
        self.path, self.key, self.value = root / LOCK, key, value or root.name
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises ConfigError naming the owner, and for another machine's how to remove it.

        The lock of a process of this machine that is gone, or of an earlier start of this job, is taken over; a line on
        the screen says so.
        """
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                held = not _lock(descriptor)
                owner = Owner.read(os.pread(descriptor, 4096, 0))
                if held or (owner is not None and not self._may_take_over(owner)):
                    raise ConfigError([self._violation(owner, held=held)])
                if not self._is_current(descriptor):
                    os.close(descriptor)
                    continue  # somebody removed the file meanwhile: lock the new one
            except BaseException:
                os.close(descriptor)
                raise
            break
        if owner is not None:
            print(f"notice: taking over the lock of {owner}: it has ended", file=sys.stderr)
        self._descriptor = descriptor
        self._write(orjson.dumps(asdict(Owner.here())))

    def release(self) -> None:
        """Give the folder free. Safe to call twice."""
        if self._descriptor is None:
            return
        with suppress(OSError):  # a disk that is full or gone: the kernel's lock ends all the same
            self._write(b"")
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def refusal(self) -> Violation | None:
        """Why `acquire` would be refused as the file reads now; None where it would not be.

        The file alone is looked at: to try the kernel's lock would refuse another process that takes it meanwhile.
        """
        try:
            owner = Owner.read(self.path.read_bytes())
        except OSError:
            return None
        return None if owner is None or self._may_take_over(owner) else self._violation(owner, held=False)

    def _may_take_over(self, owner: Owner) -> bool:
        if owner.job and owner.job == _job():
            return True  # the scheduler ends one start of a job before it begins the next
        return owner.host == socket.gethostname() and not owner.lives

    def _violation(self, owner: Owner | None, *, held: bool) -> Violation:
        whose = str(owner) if owner is not None else "another process"
        remedy = f"Choose another {self.key}, or wait until it ends"
        if owner is not None and not held and owner.host != socket.gethostname():
            remedy += f". If that process is gone, remove the lock: rm {self.path}"
        return Violation(self.key, self.value, f"is in use by {whose}", remedy)

    def _is_current(self, descriptor: int) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        return False

    def _write(self, content: bytes) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        os.fsync(self._descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the kernel gives this process the lock. True, too, where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _start_of(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _job() -> str:
    return os.environ.get("SLURM_JOB_ID", "")
