"""Writes checkpoint folders, synchronously or in the background; a folder appears under its name when it is complete.

Everything is written beside the folder first (``<name>.partial``), with a manifest of its digests, brought to the disk
and moved in place last, so that a crash at any moment leaves the checkpoints before it as they were.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from tau2_lightning.durable import take_name, write_durably
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.launch.manifest import write_manifest
from tau2_lightning.launch.run_folder import META

from .checkpoint import barrier, contents
from .write_faults import is_interrupt, why_not_written

SECONDS = 600.0


class CheckpointSaver:
    """Saves one checkpoint at a time. In the ``background`` a save returns once tensors are copied to the CPU.

    The next save, a load and ``wait`` wait at most ``seconds`` for the current save. They raise DeadlineExceeded
    after that, InfrastructureFault when it failed. Removals asked for meanwhile happen when it is complete.
    """

    def __init__(self, *, background: bool = False, seconds: float = SECONDS) -> None:
        self.background, self.seconds = background, seconds
        self._group: dist.ProcessGroup | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._pending: tuple[Path, Future[None]] | None = None
        self._doomed: list[Path] = []
        self._writing = False
        self._lock = threading.Lock()

    def save(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        optimizers: Sequence[Optimizer],
        names: Mapping[int, str],
        meta: dict[str, Any],
        *,
        skip: frozenset[str] = frozenset(),
    ) -> None:
        """Write a checkpoint; see `checkpoint.contents` for the arguments. Collective.

        Raises TypeError when ``meta`` holds something that could not be read back safely.
        """
        self.wait()
        state, blob = contents(tensors, optimizers, names, meta, skip)
        partial = folder.with_name(f"{folder.name}.partial")
        if _leads():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        alone = not dist.is_initialized()
        if not self.background:
            with _naming(folder):
                dcp.save(state, checkpoint_id=str(partial), no_dist=alone)
                if _leads():
                    _appear(partial, folder, blob)
            barrier()
            return
        if not alone and self._group is None:
            # A group of its own: its collectives run beside the training's, and need a CPU backend.
            self._group = dist.new_group(backend="gloo")
        upload: Any = dcp.async_save(state, checkpoint_id=str(partial), process_group=self._group, no_dist=alone)
        self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = True
        self._pending = folder, self._executor.submit(self._complete, upload, partial, folder, blob)

    def _complete(self, upload: Future[Any], partial: Path, folder: Path, blob: bytes) -> None:
        upload.result()  # rank 0's ends when every rank has written
        if _leads():
            _appear(partial, folder, blob)
        with self._lock:
            self._writing = False
            doomed, self._doomed = self._doomed, []
        for old in doomed:
            _remove(old)

    def remove(self, folder: Path) -> None:
        """Remove a checkpoint folder, once the current save is complete: until then it may be the newest one.

        Call it on rank 0 only.
        """
        with self._lock:
            if self._writing:
                self._doomed.append(folder)
                return
        _remove(folder)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._pending is None:
            return
        (folder, future), self._pending = self._pending, None
        try:
            with _naming(folder):
                future.result(timeout=self.seconds)
        except TimeoutError as error:
            raise DeadlineExceeded("checkpoint", self.seconds, f"writing {folder} in the background") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what writing that was cut off has left in ``folder``; what was being replaced gets its name back."""
    for old in folder.glob("*.old"):
        whole = old.with_suffix("")
        if whole.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(whole)
    for partial in folder.glob("*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Raise errors that name the folder and the reason, and leave nothing half-written behind.

    torch's own error is not an Exception, names no folder, and swallows Ctrl-C.
    """
    try:
        yield
    except (OSError, CheckpointException) as error:
        if isinstance(error, TimeoutError):
            raise
        if _leads():
            shutil.rmtree(folder.with_name(f"{folder.name}.partial"), ignore_errors=True)
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        cause, reason = why_not_written(error, folder)
        raise InfrastructureFault("checkpoint", cause, f"{folder} could not be written: {reason}") from error


def _remove(folder: Path) -> None:
    if folder.exists():  # after a run folder was moved, old paths are gone; Lightning's own strategies allow that too
        shutil.rmtree(folder)


def _leads() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _appear(partial: Path, folder: Path, blob: bytes) -> None:
    """Complete ``partial`` and give it its name. An older folder of that name stays in place until then."""
    write_durably(partial / META, blob)
    write_manifest(partial)
    take_name(partial, folder)
