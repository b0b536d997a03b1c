"""Watches the phases of a run: at a deadline it says what is stuck since when, keeps the evidence, and ends the run."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import structlog

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stacks import StackFile, main_thread_frames, write_stacks
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.telemetry.phases import PhaseClock

from .deadlines import Deadline

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
# The report is written so long before a phase ends itself, while what is stuck is still there to be looked at; at most
# so large a part of the deadline.
EARLY_SECONDS, EARLY_PART = 5.0, 0.1
REPORTS = 20  # folders in a run; further ones would fill its disk
# Makes the main thread raise; nothing else uses it.
END_SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2


class StuckWatch:
    """Inside its ``with`` block a thread looks at ``clock`` once a second.

    A phase that reaches its deadline is reported on the screen and in ``stuck/<number>-<phase>`` of the run's folder:
    what waits for what since when, the stacks of all processes below this one, the ends of the logs. A phase that does
    not end itself then is ended: the main thread raises DeadlineExceeded, so that complete steps are saved. When even
    that does not end it, because it is in a library, the process leaves after ``stops.grace`` seconds with exit code 1.

    ``deadlines`` are looked up when the block begins. ``whereabouts`` gives lines about what is being played.
    """

    def __init__(
        self,
        clock: PhaseClock,
        folder: RunFolder,
        stops: StopSignals,
        deadlines: Callable[[], Mapping[str, Deadline]],
        whereabouts: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self.clock, self.folder, self.stops, self.whereabouts = clock, folder, stops, whereabouts
        self._deadlines, self._known = deadlines, dict[str, Deadline]()
        self._reported: set[float] = set()
        self._ended: dict[float, float] = {}  # phases whose main thread was told to raise, and when
        self._error: tuple[float, DeadlineExceeded] | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stuck-watch", daemon=True)
        self._stacks = StackFile(folder.logs, f"rank{global_rank()}")
        self._before: Any = None

    def __enter__(self) -> StuckWatch:
        self._stacks.__enter__()
        self._known = dict(self._deadlines())
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(END_SIGNAL, self._raise)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=10)
        if self._before is not None:
            signal.signal(END_SIGNAL, self._before)
        self._stacks.__exit__()

    def look(self) -> None:
        """Look at the current phase once."""
        phase, seconds, began = self.clock.now
        deadline = self._known.get(phase)
        if deadline is None:
            return
        early = min(EARLY_SECONDS, EARLY_PART * deadline.seconds) if deadline.own else 0.0
        if seconds > deadline.seconds - early and began not in self._reported:
            self._reported.add(began)
            self.report(phase, seconds, deadline)
        if seconds <= deadline.last or self.stops.asked is not None:  # a signal has its own deadline
            return
        if began not in self._ended:
            self._ended[began] = time.monotonic()
            self._error = began, DeadlineExceeded(phase, deadline.seconds, f"in phase {phase!r} ({deadline.keys})")
            if self._before is not None:
                signal.pthread_kill(threading.main_thread().ident or 0, END_SIGNAL)
        elif time.monotonic() - self._ended[began] > self.stops.grace:
            self.stops.leave(f"phase {phase!r} does not end, {seconds:.0f} s: leaving; {self.stops.kept()}")

    def report(self, phase: str, seconds: float, deadline: Deadline) -> Path | None:
        """Say that ``phase`` is stuck, and write the evidence; returns the folder with it."""
        rank = f"rank {global_rank()}: " if os.environ.get("WORLD_SIZE", "1") != "1" or global_rank() else ""
        what = (
            f"{rank}phase {phase!r} for {seconds:.0f} s, its deadline is {deadline.seconds:g} s ({deadline.keys}); "
            f"then {deadline.then}"
        )
        lines = [what, f"main thread: {main_thread_frames()}", *self._played()]
        log.error("stuck", phase=phase, seconds=round(seconds), lines=lines)
        target = self._target(phase)
        with suppress(OSError):  # a disk that is full or gone: the screen has the report
            if target is not None:
                write_stacks(target, self.folder.logs, "\n".join(lines) + "\n")
        where = "" if target is None else f"; stacks and logs are in {target}"
        print("stuck: " + "\n  ".join(lines) + where, file=sys.stderr, flush=True)
        return target

    def _played(self) -> list[str]:
        try:
            return list(self.whereabouts())
        except Exception as error:  # noqa: BLE001  # another thread changes what is looked at
            return [f"(nothing is known of the episodes: {error!r})"]

    def _target(self, phase: str) -> Path | None:
        root = self.folder.root / "stuck"
        number = len(list(root.glob("*"))) + 1
        if number > REPORTS:
            return None
        return root / f"{number:02d}-{phase.replace(' ', '-')}-rank{global_rank()}"

    def _raise(self, number: int, frame: FrameType | None) -> None:
        pending, self._error = self._error, None
        if pending is not None and pending[0] == self.clock.now[2]:  # else the phase has just ended
            raise pending[1]

    def _watch(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self.look()
