"""Why a checkpoint cannot be written, in words: a full disk, a read-only one, and how much room one needs."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from tau2_lightning.errors import InfrastructureFault

GIB = 1 << 30
# Metadata, and what else may be written to the disk in the meantime.
SPARE_BYTES = 16 << 20
_CAUSES = {
    errno.ENOSPC: ("disk_full", "the disk is full"),
    errno.EDQUOT: ("disk_full", "the quota of this user is used up"),
    errno.EROFS: ("read_only", "the file system is read-only"),
    errno.EACCES: ("read_only", "this user may not write there"),
    errno.EPERM: ("read_only", "this user may not write there"),
}


def why_not_written(error: BaseException, folder: Path) -> tuple[str, str]:
    """(cause for counting, the reason in words) of an error while ``folder`` was written.

    torch's writer hides the disk's error behind one of its own ("unexpected pos 704 vs 598"); it is looked for.
    """
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _CAUSES:
            cause, words = _CAUSES[one.errno]
            return cause, f"{words}{_room_in_words(folder)}"
    # Its file is shorter than what was written to it: a disk that fills up in the middle looks like this, too.
    free = _free(folder)
    if free is not None and free < SPARE_BYTES:
        return "disk_full", f"the disk is full{_room_in_words(folder)}"
    return "write", str(error)


@contextmanager
def naming_write_faults(component: str, folder: Path) -> Iterator[None]:
    """Raise an error of writing as the InfrastructureFault of ``component`` that names ``folder`` and the reason."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        cause, reason = why_not_written(error, folder)
        raise InfrastructureFault(component, cause, f"{folder} could not be written: {reason}") from error


def is_interrupt(error: BaseException) -> bool:
    """Whether ``error`` is Ctrl-C or follows from it: torch's file writer then raises an error of its own."""
    return any(isinstance(one, KeyboardInterrupt) for one in _chain(error))


def local_bytes(tensors: Iterable[Tensor], optimizer_states: Iterable[Mapping[str, Any]]) -> int:
    """The bytes that this rank writes for ``tensors`` and the states of optimizers, as ``Optimizer.state`` has them."""
    slots = [value for state in optimizer_states for value in state.values() if isinstance(value, Tensor)]
    return sum(_own(tensor) for tensor in (*tensors, *slots))


def check_room(folder: Path, needed: int) -> None:
    """Raise InfrastructureFault when the disk of ``folder`` has not ``needed`` bytes left."""
    free = _free(folder)
    if free is not None and free < needed + SPARE_BYTES:
        problem = f"{folder} needs {_amount(needed)}, and its disk has {_amount(free)} left"
        raise InfrastructureFault("checkpoint", "disk_full", f"{problem}; older checkpoints are as they were")


def _own(tensor: Tensor) -> int:
    local = getattr(tensor, "_local_tensor", tensor)  # a DTensor's shard
    return int(local.numel() * local.element_size())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error``, what it was raised from, and the errors of each rank that torch collects."""
    pending, seen = [error], set[int]()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, CheckpointException):
            pending += [cause for cause, _ in one.failures.values()]


def _free(folder: Path) -> int | None:
    for existing in folder.parents:
        if existing.is_dir():
            return shutil.disk_usage(existing).free
    return None


def _room_in_words(folder: Path) -> str:
    free = _free(folder)
    return "" if free is None else f" ({_amount(free)} left)"


def _amount(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.1f} MiB"
