"""Watchdog: runs one command and ends all its processes when its parent ends, even after ``kill -9``.

It is started as a plain script, ``python -I watchdog.py GRACE_SECONDS COMMAND...``, as the leader of a new session, so
it imports the standard library only. It kills its whole process group in three cases: standard input ends (the kernel
closes its other end when the parent dies, however it dies), the watchdog gets another parent, or the command's main
process ends. The last case is for vLLM, which leaves its engine core behind when its API server is killed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.25
PR_SET_PDEATHSIG = 1


def guarded(command: list[str], grace: float) -> list[str]:
    """The command line that runs ``command`` under a watchdog; SIGKILL follows SIGTERM after ``grace`` seconds."""
    return [sys.executable, "-I", str(Path(__file__).absolute()), str(grace), *command]


def die_with_parent() -> None:
    """Ask Linux to kill the calling process when its parent thread ends. On other systems the poll in ``main`` replaces
    it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def living_in_group(group: int) -> list[int]:
    """Process ids of the living members of process group ``group``, from /proc (Linux)."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        state, its_group, threads = fields[0], int(fields[2]), int(fields[17])
        # A process whose first thread has ended reads as a zombie while others still hold its sockets.
        if its_group == group and (state not in "ZX" or threads > 1):
            members.append(int(entry.name))
    return members


def end_group() -> None:
    """SIGKILL every other member of this process group until none is left."""
    while members := [pid for pid in living_in_group(os.getpgrp()) if pid != os.getpid()]:
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def main(arguments: list[str]) -> int:
    """Run the command of ``arguments`` (grace, command...); returns its exit code, 128 + the signal after one."""
    grace, command = float(arguments[0]), arguments[1:]
    parent = os.getppid()
    terminated_at: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated_at.append(time.monotonic()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the trainer ends us in its own order
    # This process has one thread, so running Python between fork and exec is safe.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    forwarded = False
    while child.poll() is None:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], POLL_SECONDS)
        if (readable and not os.read(sys.stdin.fileno(), 1)) or os.getppid() != parent:
            break
        if terminated_at and not forwarded:
            child.send_signal(signal.SIGTERM)
            forwarded = True
        if terminated_at and time.monotonic() - terminated_at[0] > grace:
            break
    end_group()
    child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
