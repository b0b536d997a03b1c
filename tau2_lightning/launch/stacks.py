"""Where the processes of a run are: the stacks of this one, of its children and of its ranks, and what they logged."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

# A process that knows this signal writes its stacks; to any other it would be the end. in_vllm/stacks.py has the same.
STACK_SIGNAL = signal.SIGRTMIN + 6 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR1
ANSWER_SECONDS = 2.0
SPY_SECONDS = 10.0
TAIL_BYTES = 8000
_PREFIX = "stacks-"


class StackFile:
    """Lets this process write the stacks of all its threads into ``logs/stacks-<name>.txt`` on ``STACK_SIGNAL``.

    The handler is written in C and needs no lock of the interpreter, so it answers in an endless loop of a library,
    too. The file is removed at the end if nothing was written.
    """

    def __init__(self, logs: Path, name: str) -> None:
        self.path = logs / f"{_PREFIX}{name}.txt"
        self._file: IO[str] | None = None

    def __enter__(self) -> StackFile:
        self._file = self.path.open("w")
        faulthandler.register(STACK_SIGNAL, file=self._file, all_threads=True)
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.unregister(STACK_SIGNAL)
        if self._file is not None:
            self._file.close()
            with suppress(OSError):
                if not self.path.stat().st_size:
                    self.path.unlink()


def write_stacks(folder: Path, logs: Path, what: str) -> None:
    """Write into ``folder`` what was seen (``what.txt``, first), the stacks of this process and of all its descendants,
    and the ends of the ``logs``.

    Descendants that know the signal write their stacks where they log; py-spy looks at the others where it is
    installed. ``processes.txt`` lists all of them with their state: one that was stopped from outside cannot answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "what.txt").write_text(what)
    with (folder / "stacks-this-process.txt").open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
    lines = [_described(psutil.Process())]
    asked = False
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            lines.append(_described(process))
            if knows_signal(process.pid):
                os.kill(process.pid, STACK_SIGNAL)
                asked = True
            elif (text := _spied(process.pid)) is not None:
                (folder / f"stacks-{process.pid}.txt").write_text(text)
    (folder / "processes.txt").write_text("\n".join(lines) + "\n")
    if asked:
        time.sleep(ANSWER_SECONDS)
    for log in sorted(logs.glob("*")):
        if log.is_file() and log.stat().st_size:
            (folder / f"tail-{log.name}").write_bytes(_tail(log))


def knows_signal(pid: int) -> bool:
    """Whether the process ``pid`` has a handler for ``STACK_SIGNAL`` (Linux; elsewhere none is assumed)."""
    with suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
        return bool(int(caught, 16) >> (STACK_SIGNAL - 1) & 1)
    return False


def main_thread_frames(count: int = 4) -> str:
    """Where this process's main thread is, the innermost frame first. For any thread."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident is not None else None
    found: list[str] = []
    while frame is not None and len(found) < count:
        found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


def _described(process: psutil.Process) -> str:
    with process.oneshot():
        command = " ".join(process.cmdline())[:200]
        times = process.cpu_times()
        used = times.user + times.system
        return f"{process.pid} {process.status()} parent {process.ppid()} cpu {used:.1f} s: {command}"


def _spied(pid: int) -> str | None:
    spy = shutil.which("py-spy")
    if spy is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [spy, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=SPY_SECONDS
        )
        return done.stdout or done.stderr
    return None


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read()
