"""Ends the collectives that this process waits in, where the backend can: a rank that is gone never joins them."""

from __future__ import annotations

import threading

import structlog
import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group

log = structlog.get_logger(__name__)

ABORT_SECONDS = 10.0


def abort_collectives() -> bool:
    """Abort every process group; returns whether that came to an end within ``ABORT_SECONDS``.

    NCCL can, and the waiting thread then gets an error. gloo has nothing to abort: there the process has to leave. A
    backend may hang in its own abort, so another thread does it.
    """
    if not dist.is_initialized():
        return False
    failed: list[Exception] = []

    def abort() -> None:
        try:
            _abort_process_group()
        except Exception as error:  # noqa: BLE001  # a backend without it; what it raises is not fixed
            failed.append(error)

    worker = threading.Thread(target=abort, name="abort-collectives", daemon=True)
    worker.start()
    worker.join(ABORT_SECONDS)
    if failed:
        log.info("collectives cannot be aborted", error=repr(failed[0]))
    return not failed and not worker.is_alive()
