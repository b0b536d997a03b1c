"""Signs of life between the ranks of a run: one that is gone, frozen or stuck is named, and the others do not wait."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning as L
import psutil
import structlog
import torch.distributed as dist

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stacks import main_thread_frames, write_stacks
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.strategy.abort import abort_collectives
from tau2_lightning.strategy.launcher import RankLauncher, ended_in_words

log = structlog.get_logger(__name__)

BEATS = 12.0  # signs of life in trainer.rank_timeout
STORE_SECONDS = 10.0
ENDED, PAUSED = "ended", "between two parts of the run"
SAME_ERROR_SECONDS = 5.0
EVIDENCE_SECONDS = 60.0


class RankWatch(L.Callback):
    """Every rank tells the others, through the store at which they met, in which phase it is and where.

    Rank 0 looks at all of them, every other rank at rank 0. One whose sign of life does not change for
    ``trainer.rank_timeout`` seconds, or that ended with an error, is named on the screen with its last words and the
    stacks of this rank are kept in ``stuck/``. The collectives are aborted where the backend can; where it cannot, this
    process leaves with exit code 1 after ``trainer.grace_seconds``. With one rank it does nothing.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, stops: StopSignals | None = None) -> None:
        self.folder, self.seconds, self.stops = folder, config.trainer.rank_timeout, stops or StopSignals(0.0)
        self._beats: Beats | None = None
        self._thread: threading.Thread | None = None
        self._done = threading.Event()
        self._told = threading.Lock()  # held once it is said who is lost
        self._written = threading.Event()  # the evidence of it
        self._launcher: RankLauncher | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._thread is not None or trainer.world_size == 1 or not dist.is_initialized():
            return
        clock = getattr(getattr(trainer, "datamodule", None), "clock", None)
        phase: Callable[[], str] = (lambda: str(clock)) if clock is not None else (lambda: "idle")
        store = dist.distributed_c10d._get_default_store()
        self._beats = Beats(store, trainer.global_rank, trainer.world_size, self.seconds, phase)
        launcher = trainer.strategy.launcher
        if isinstance(launcher, RankLauncher):
            self._launcher = launcher
            launcher.ended = lambda rank, code: self._lost(f"rank {rank} {ended_in_words(code)}")
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, args=(self._beats,), name="rank-watch", daemon=True)
        self._thread.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A rank may be done earlier than the others: it says so, and nobody waits for its signs of life."""
        thread, self._thread = self._thread, None
        if thread is None or self._beats is None or self._done.is_set():
            return
        self._done.set()
        thread.join(STORE_SECONDS)
        with suppress(Exception):  # rank 0 may be gone already, with the store
            self._beats.say(PAUSED)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A collective fails at once when its other end is gone. Who that was shows a moment later."""
        beats = self._beats
        if beats is None or self.stops.asked is not None:
            return
        if _of_a_collective(exception):
            ends = time.monotonic() + self.seconds + STORE_SECONDS
            while not self.stops.lost and time.monotonic() < ends:
                time.sleep(self.seconds / BEATS / 4)
        if self._told.locked():  # another thread writes down who is lost, which would end with this process
            self._written.wait(EVIDENCE_SECONDS)
        self._done.set()
        with suppress(Exception):  # as above
            beats.say(f"{ENDED} with {type(exception).__name__}: {str(exception)[:200]}")

    def _watch(self, beats: Beats) -> None:
        answered = time.monotonic()
        while not self._done.wait(self.seconds / BEATS):
            found = ""
            try:
                beats.say()
                found = beats.lost()
                answered = time.monotonic()
            except Exception as error:  # noqa: BLE001  # whatever the store raises: rank 0 holds it
                if time.monotonic() - answered > self.seconds:
                    found = f"rank 0 has not answered for {time.monotonic() - answered:.0f} s ({type(error).__name__})"
            # An error that is raised on every rank reaches this one, too, a moment later.
            if found and not (ENDED in found and self._done.wait(SAME_ERROR_SECONDS)):
                self._lost(found)
                return

    def _lost(self, found: str) -> None:
        """Say who is lost, keep the evidence, and end this rank."""
        if self._done.is_set() or not self._told.acquire(blocking=False):
            return
        mine = f"this rank, {self._beats.rank if self._beats else 0}, is at {main_thread_frames()}"
        print(f"stuck: {found}; {mine}", file=sys.stderr, flush=True)
        log.error("rank lost", found=found, here=mine)
        self.stops.lost = found
        rank = self._beats.rank if self._beats else 0
        try:
            target = self.folder.root / "stuck" / f"lost-rank-seen-by-rank{rank}"
            write_stacks(target, self.folder.logs, f"{found}\n{mine}\n")
        except OSError as error:  # a disk that is full or gone: the screen has the report
            log.warning("the stacks cannot be written", error=str(error))
        finally:
            self._written.set()
        abort_collectives()
        if not self._done.wait(self.stops.grace):
            if self._launcher is not None:
                self._launcher.end_ranks()
            self.stops.leave(f"{found}: leaving; {self.stops.kept()}")


class Beats:
    """The signs of life of ``world`` ranks in ``store``, as rank ``rank`` gives and reads them.

    ``phase`` says where this rank is. A rank is lost when its text stays the same for ``seconds``.
    """

    def __init__(self, store: Any, rank: int, world: int, seconds: float, phase: Callable[[], str]) -> None:
        self._store = store.clone()  # with a connection of its own: the main thread may wait in the other one
        self._store.set_timeout(timedelta(seconds=STORE_SECONDS))
        self.rank, self.seconds, self._phase = rank, seconds, phase
        self.looked_at = [other for other in range(world) if other != rank] if rank == 0 else [0]
        self._count = 0
        self._newest: dict[int, tuple[str, float]] = {}

    def say(self, words: str = "") -> None:
        """Give a sign of life; ``words`` are the last ones."""
        self._count += 1
        here = words or f"in phase {self._phase()} at {main_thread_frames(2)}"
        text = json.dumps([self._count, os.getpid(), socket.gethostname(), here])
        self._store.set(f"alive/{self.rank}", text)

    def lost(self) -> str:
        """Who of those that this rank looks at is lost, in words; empty while none is."""
        now = time.monotonic()
        for other in self.looked_at:
            text = self._store.get(f"alive/{other}").decode() if self._store.check([f"alive/{other}"]) else ""
            before, since = self._newest.get(other, ("", now))
            if text and json.loads(text)[3] == PAUSED:
                self._newest.pop(other, None)
                continue
            if text != before or other not in self._newest:
                self._newest[other] = text, now
            elif now - since > self.seconds:
                return f"rank {other}{_who(text)} has given no sign of life for {now - since:.0f} s"
            if text and json.loads(text)[3].startswith(ENDED):
                return f"rank {other}{_who(text)}"
        return ""


def _of_a_collective(error: BaseException) -> bool:
    """Whether ``error`` says that a collective failed. gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _who(text: str) -> str:
    """The process behind a sign of life, and where it was."""
    if not text:
        return " (it never gave one)"
    _, pid, host, here = json.loads(text)
    state = ""
    if host == socket.gethostname():
        state = _state(pid)
    return f", process {pid} on {host}{state}, {here}"


def _state(pid: int) -> str:
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return ", which is gone"
    return {psutil.STATUS_ZOMBIE: ", which is gone", psutil.STATUS_STOPPED: ", which is stopped"}.get(status, "")
