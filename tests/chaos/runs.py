"""A run of the main job as a process: start it, wait for a phase, injure it, and see how it ends and goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tau2_lightning.launch.run_folder import RunFolder
from tests.programs import Process, Start, spawned

from .announce import announced

START_SECONDS = 300.0
END_SECONDS = 240.0
HOLD = "+callbacks.announce._target_=tests.chaos.announce.Announce"


@dataclass
class Run:
    """The run in ``root``/e/t. ``command`` starts it, ``again`` resumes it, both as arguments of ``python``, which
    ``launch`` starts; ``screen`` is what all its starts have printed."""

    command: Sequence[str]
    again: Sequence[str]
    root: Path
    launch: Start = spawned
    screen: str = ""
    code: int | None = None
    _process: Process | None = None
    _before: list[str] = field(default_factory=list)
    _below: list[psutil.Process] = field(default_factory=list)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root / "e" / "t")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *words: str, hold: str = "", resume: bool = False) -> None:
        """Start or resume it with further ``words``; it stands still where ``hold`` says, e.g. ``train:3``."""
        (self.folder.root / "go").unlink(missing_ok=True)
        self._before = announced(self.folder.root)
        if resume and self.folder.last_checkpoint() is not None:
            words = (*words, "ckpt_path=last")
        given = [
            *(self.again if resume else self.command),
            *words,
            HOLD,
            *([f"+callbacks.announce.hold='{hold}'"] if hold else []),
        ]
        self.root.mkdir(parents=True, exist_ok=True)
        self._process = self.launch(given, self.root / "screen.txt")

    def reach(self, place: str) -> None:
        """Wait until the phase ``place`` of this start begins."""
        ends = time.monotonic() + START_SECONDS
        while place not in announced(self.folder.root)[len(self._before) :]:
            assert self._process is not None and self._process.poll() is None, f"ended before {place}:\n{self._read()}"
            assert time.monotonic() < ends, f"does not reach {place}:\n{self._read()}"
            time.sleep(0.02)
        self.look_below()

    def look_below(self) -> None:
        """Look which processes are below it now: of those none may be left at its end."""
        self._below = psutil.Process(self.pid).children(recursive=True)

    def go_on(self) -> None:
        """Let it leave the place where it stands still."""
        (self.folder.root / "go").touch()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the run's own process."""
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for the end; the exit code, as a shell has it. No process of the run may be left."""
        assert self._process is not None
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the run does not end:\n{self._read()}") from None
        self._read()
        self.code = code if code >= 0 else 128 - code
        _, alive = psutil.wait_procs(self._below, timeout=30)
        assert not alive, f"left behind: {alive}"
        return self.code

    def kill(self) -> None:
        """End it, where it still runs, with all that it has started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    def trained(self) -> list[int]:
        """The training steps that were completed, over all starts."""
        lines = [line.partition(":") for line in announced(self.folder.root)]
        return [int(version) for what, _, version in lines if what == "trained"]

    def says(self, pattern: str) -> bool:
        """Whether the screen has shown something that matches."""
        return re.search(pattern, self.screen) is not None

    def _read(self) -> str:
        file = self.root / "screen.txt"
        self.screen = file.read_text(errors="replace") if file.exists() else ""
        return self.screen
