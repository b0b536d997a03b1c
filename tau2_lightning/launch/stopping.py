"""Signals that end a run: the first one at the next safe place, within a deadline; the second at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn

# SIGHUP comes when a terminal is closed or its connection breaks; under nohup it is ignored, and stays so.
HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# In these phases nothing of a training step is under way: they can be left in the middle.
BREAKABLE = frozenset({"engine start", "rollout", "validate"})


class Stopped(KeyboardInterrupt):
    """The process was asked to stop by signal ``number``. Handled as Ctrl-C is, wherever that is handled."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)

    @property
    def code(self) -> int:
        """The exit code: 143 after SIGTERM, 130 after Ctrl-C, 129 after SIGHUP."""
        return 128 + self.number


class StopSignals:
    """Heeds SIGTERM, SIGINT and SIGHUP inside its ``with`` block.

    ``holding`` says that a training step may be under way; training then ends at its next boundary, which looks at
    ``asked``. Otherwise, and in phases that can be left in the middle, the signal raises Stopped at once. ``phase``
    gives the current phase; ``alone``: this is the only rank, so that a weight sync can be left, too. On ranks above 0
    (``leads`` is False) a signal is only noted: they stop when rank 0 does. ``grace`` seconds after the first signal
    the process is ended where it is, and a line says where that was and what ``kept`` says is kept. ``lost`` names
    a rank that is gone, which ends the run, too.
    """

    def __init__(
        self, grace: float, phase: Callable[[], str] = lambda: "idle", *, alone: bool = True, leads: bool = True
    ) -> None:
        self.grace, self.phase, self.leads = grace, phase, leads
        self.breakable = BREAKABLE | {"weight sync"} if alone else BREAKABLE
        self.asked: int | None = None
        self.lost = ""
        self.holding = False
        self.kept: Callable[[], str] = lambda: "nothing was being trained"
        self._timer: threading.Timer | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def code(self) -> int | None:
        """The exit code after a signal; None before one."""
        return None if self.asked is None else 128 + self.asked

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in HEEDED}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Heed the signals, also after somebody else (Lightning's Trainer) has set handlers. A signal that this process
        was started to ignore stays ignored."""
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, self._heed)

    def entered(self) -> None:
        """Raise Stopped when a signal has come and the phase that begins can be left. For ``PhaseClock.entered``."""
        if self.asked is not None and self.leads and self.phase() in self.breakable:
            raise Stopped(self.asked)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.asked is not None and number == signal.SIGHUP:
            return  # of one closed terminal the kernel and the shell both tell
        if self.asked is not None:
            self.leave(f"{name} again: leaving at once; {self.kept()}")
        self.asked, self._since = number, time.monotonic()
        _say(f"{name}: stopping, within {self.grace:g} s (trainer.grace_seconds); a second signal leaves at once")
        self._timer = threading.Timer(self.grace, self._expire)
        self._timer.daemon = True
        self._timer.start()
        if self.leads and (not self.holding or self.phase() in self.breakable):
            raise Stopped(number)

    def _expire(self) -> None:
        where = f"still in phase {self.phase()!r}" if self.holding else "still ending"
        self.leave(f"{where} after {self.grace:g} s: leaving; {self.kept()}")

    def leave(self, text: str) -> NoReturn:
        """Say ``text`` and end this process, with the code of the signal, or 1 without one. Its children's watchdogs
        see that and end them."""
        _say(text)
        os._exit(self.code or 1)


def _say(text: str) -> None:
    # Not print: a handler may run while the main thread is inside it.
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
