"""Lets child processes take turns: a parent allows one training step at a time, so that they share a machine fairly."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tau2_lightning.errors import DeadlineExceeded


class Gate:
    """The child's side. ``wait()`` reports the finished step, then blocks until the parent continues or stops it."""

    def __init__(self, reads: int, writes: int) -> None:
        self._in, self._out = os.fdopen(reads, "r"), os.fdopen(writes, "w")
        self._started: float | None = None
        self.facts: dict[str, float] = {}

    def wait(self) -> bool:
        """Return False when no further step follows."""
        if self._started is not None:
            self.say(seconds=time.perf_counter() - self._started, **self.facts)
        else:
            self.say(ready=True)
        go = self._in.readline().strip() == "go"
        self._started = time.perf_counter()
        return go

    def say(self, **facts: Any) -> None:
        """Send one message to the parent."""
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()


class Child:
    """The parent's side: a process that runs ``arguments`` plus two file descriptors, with its output in ``log``."""

    def __init__(self, name: str, arguments: list[str], log: Path, *, timeout: float) -> None:
        self.name, self.log, self.timeout = name, log, timeout
        child_in, self._to = os.pipe()
        self._from, child_out = os.pipe()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments, str(child_in), str(child_out)],
                pass_fds=(child_in, child_out),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        os.close(child_in)
        os.close(child_out)
        self._rest = b""
        self.steps: list[dict[str, float]] = []

    @property
    def total(self) -> float:
        """Return the seconds of all its steps."""
        return sum(step["seconds"] for step in self.steps)

    def step(self) -> None:
        """Let the child do one step, and wait until it is done."""
        self.tell("go")
        self.steps.append(self.hear())

    def tell(self, word: str) -> None:
        os.write(self._to, f"{word}\n".encode())

    def hear(self) -> dict[str, Any]:
        """Return the child's next message. Raises DeadlineExceeded or RuntimeError with the child's name and log."""
        deadline = time.monotonic() + self.timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise DeadlineExceeded(self.name, self.timeout, f"see {self.log}")
            piece = os.read(self._from, 65536)
            if not piece:
                raise RuntimeError(f"{self.name} ended early; the end of {self.log}:\n{self.log.read_text()[-3000:]}")
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Wait until the child ends; kill it when it does not."""
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait(timeout=30)
        finally:
            os.close(self._to)
            os.close(self._from)
