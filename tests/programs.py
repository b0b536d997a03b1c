"""Programs of the tests, each in a process of its own: started as a user starts them, or forked.

A forked program is a process like any other, with a session, handlers of signals, an output and an exit code of its
own. It only begins with its imports done, which takes ten seconds off each start.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tests.fork_server import fork_server

LONGEST = 300.0  # seconds until a program says something or ends


class Process(Protocol):
    """What both kinds have in common."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


Start = Callable[[Sequence[str], Path], Process]


def spawned(words: Sequence[str], output: Path) -> Process:
    """``python WORD...``; what it prints is appended to ``output``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            preexec_fn=_as_at_a_terminal,
        )  # fmt: skip


def _as_at_a_terminal() -> None:
    """Heed Ctrl-C, which a shell lets its background processes ignore, and a closed terminal, which nohup does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def forked(words: Sequence[str], output: Path) -> Process:
    """The same in a forked process: ``words`` are ``-m MODULE WORD...`` or ``-c SOURCE WORD...``."""
    return Forked(words, output)


class Forked:
    """``python WORD...`` in a forked process, with the environment of now and ``variables``.

    What it prints is appended to ``output``, or on stderr to ``errors`` where that is given. At the end of a ``with``
    block it is killed if it still runs.
    """

    def __init__(
        self, words: Sequence[str], output: Path, errors: Path | None = None, variables: dict[str, str] | None = None
    ) -> None:
        self.output, self.errors = output, errors or output
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | (variables or {})
        given = (list(words), str(self.output), str(self.errors), environment)
        self._process = fork_server().Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def printed(self) -> str:
        """What it has printed so far, on both."""
        files = dict.fromkeys((self.output, self.errors))
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def poll(self) -> int | None:
        """The exit code, below zero that of a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = LONGEST) -> int:
        """The exit code. Raises TimeoutExpired as subprocess does."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0.0, self.printed)
        return self._process.exitcode

    def until(self, text: str, seconds: float = LONGEST) -> None:
        """Wait until it has printed ``text``. AssertionError with what it printed, when it ends without."""
        ends = time.monotonic() + seconds
        while text not in self.printed:
            ended = self.poll() is not None
            assert text in self.printed or not (ended or time.monotonic() > ends), self.printed
            time.sleep(0.02)

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait(30.0)


def _run(words: list[str], output: str, errors: str, environment: dict[str, str]) -> None:
    """In the forked process: be what ``python WORD...`` is."""
    os.setsid()
    for number, path in ((1, output), (2, errors)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    _as_at_a_terminal()
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment["PYTHONPATH"].split(os.pathsep) if path not in sys.path]
    tempfile.tempdir = None  # TMPDIR may be another now
    option, program, *rest = words
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), vars(main))  # our own text
