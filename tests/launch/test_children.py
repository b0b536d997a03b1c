"""Children are asked to end; those that do not are killed with their process group."""

from __future__ import annotations

import subprocess
import sys

import psutil

from tau2_lightning.launch.children import end_children

OBLIGING = "import time; print(0, flush=True); time.sleep(600)"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def started(program: str) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and what it printed once it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_the_stubborn_are_killed_with_their_children_and_the_obliging_are_not():
    (stubborn, grandchild), (obliging, _) = started(STUBBORN), started(OBLIGING)
    below = psutil.Process(grandchild)
    end_children([stubborn, obliging], within=2.0)
    assert (stubborn.returncode, obliging.returncode) == (-9, -15)
    assert not psutil.wait_procs([below], timeout=20)[1], "the grandchild is alive"
    assert stubborn.stdin is not None and stubborn.stdin.closed
    end_children([stubborn, obliging], within=2.0)  # a second call does no harm
