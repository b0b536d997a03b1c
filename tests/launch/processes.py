"""Programs that start processes of their own, and which processes of a group are alive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

# Like vLLM: a main process with a child of its own that ignores SIGTERM and does not notice its parent's death.
SERVER = """
import os, signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", child])
{then}
"""
WAIT = SERVER.format(then="time.sleep(600)")


def members(group: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
