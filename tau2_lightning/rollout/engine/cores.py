"""The processes of an engine that compute. A server that lost one never answers again, and does not always end.

vLLM's API server ends when its core dies, once all requests are answered. A call that changes weights is never answered
then, so the server would wait until the deadline of the weight sync.

Only processes of this machine are seen here, at once. `Watch.until_down` also asks the API server during a weight sync:
that takes half a minute, and serves for engines of node agents and for an API server that hangs itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import psutil

#: How vLLM and SGLang name them; the kernel keeps 15 characters.
TITLES = ("VLLM::EngineCor", "sglang::schedul")


def cores_below(pid: int) -> tuple[psutil.Process, ...]:
    """The engine's computing processes among the descendants of process ``pid`` on this machine."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(TITLES):
                    found.append(process)
    return tuple(found)


def ended(processes: Sequence[psutil.Process]) -> psutil.Process | None:
    """The first of ``processes`` that has ended, or None."""
    for process in processes:
        try:
            if not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                return process
        except psutil.NoSuchProcess:
            return process
    return None
