"""The end of child processes that run under a watchdog."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

from tau2_lightning.errors import DeadlineExceeded

KILL_SECONDS = 10.0


def end_children(processes: Sequence[subprocess.Popen[bytes]], within: float) -> None:
    """Send SIGTERM to all, wait ``within`` seconds for all together, then kill the groups of those that still run.

    Each process leads a process group of its own. Raises DeadlineExceeded naming a process that survives even that.
    """
    for process in processes:
        if process.poll() is None:
            process.terminate()
    ends = time.monotonic() + within
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, ends - time.monotonic()))
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        try:
            process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded("node agent", KILL_SECONDS, f"killing process {process.pid}") from error
        if process.stdin is not None:
            process.stdin.close()
