"""The folder in which a warm start is made: held by one process, and kept with its checkpoints if it is cut off."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tau2_lightning.errors import ConfigError, DeadlineExceeded
from tau2_lightning.launch.lock import RunLock
from tau2_lightning.launch.manifest import MANIFEST, damage
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.strategy.saving import remove_leftovers
from tau2_lightning.telemetry.warned import warn

FACTS = "warm_start.json"  # how the policy was made
WAIT_SECONDS = 3600.0  # for another process, or rank 0, that makes the same policy


def is_made(folder: Path) -> bool:
    """Whether the policy is there: it got its manifest before its name."""
    return (folder / MANIFEST).is_file()


def is_whole(folder: Path) -> bool:
    """Whether the policy is there and has the bytes that were written. Rank 0 removes one that has not, and says so."""
    if not folder.exists():
        return False
    problem = _damage(folder)
    if problem is not None and global_rank() == 0:
        warn(f"the warm start in {folder} is damaged ({problem}): it is made again")
        # Its name is free immediately: another process may look for it.
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        folder.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    return problem is None


@contextmanager
def working_on(folder: Path) -> Iterator[Path | None]:
    """The folder to work in for the policy ``folder``, held by rank 0; None if another process has made the policy
    while this one waited.

    It is removed at the end, unless it holds a checkpoint from which another start goes on. Raises DeadlineExceeded
    when another process holds it for longer than ``WAIT_SECONDS``.
    """
    work = folder.with_name(f".{folder.name}.work")
    if global_rank() > 0:
        yield work
        return
    lock = _held(work, folder)
    if lock is None:
        yield None
        return
    try:
        for path in work.iterdir():  # what an earlier start has left, besides its checkpoints and its record
            if path.name not in (lock.path.name, "checkpoints", "logs"):
                shutil.rmtree(path, ignore_errors=True)
        remove_leftovers(work / "checkpoints")
        yield work
    finally:
        if is_made(folder) or RunFolder(work).last_checkpoint() is None:
            shutil.rmtree(work, ignore_errors=True)
        else:
            print(f"the warm start is kept in {work}: the same command goes on from its checkpoint", file=sys.stderr)
        lock.release()


def newest_whole(work: Path) -> Path | None:
    """The newest checkpoint in ``work`` that is whole, every byte of it; None without one."""
    for path in RunFolder(work).finished_checkpoints():
        problem = damage(path, digests=global_rank() == 0)
        if problem is None:
            return path
        warn(f"{path} is damaged ({problem}); it is not used")
    return None


def wait_for(folder: Path) -> Path:
    """Wait until rank 0 has made the policy."""
    deadline = time.monotonic() + WAIT_SECONDS
    while _damage(folder) is not None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded("warm start on rank 0", WAIT_SECONDS, f"waiting for {folder}")
        time.sleep(1.0)
    return folder


def _damage(folder: Path) -> str | None:
    return damage(folder) if is_made(folder) else f"it has no {MANIFEST}"


def _held(work: Path, folder: Path) -> RunLock | None:
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while not is_made(folder):
        work.mkdir(parents=True, exist_ok=True)
        lock = RunLock(work, "warm_start", folder.name)
        try:
            lock.acquire()
        except FileNotFoundError:  # its owner has just ended and removed the folder
            continue
        except ConfigError as error:
            if time.monotonic() > deadline:
                raise DeadlineExceeded("warm start", WAIT_SECONDS, str(error.violations[0])) from error
            if not told:
                print(f"waiting for another process: {error.violations[0]}", file=sys.stderr)
            told = True
            time.sleep(1.0)
            continue
        return lock
    return None
