"""Writes kept episodes in a thread of its own, so that training does not wait for the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from tau2_lightning.config.kept import KeptBound
from tau2_lightning.trajectory import Penalties

from .episodes import kept_episodes
from .files import episodes_file, scores_file
from .names import FOLDER, REPLAYED, FileName, kept_files, too_many
from .played import Played, PlayedBatch

log = structlog.get_logger(__name__)

#: Work that waits; with more of it, training waits for the disk.
PENDING = 4
WAIT_SECONDS = 60.0
CLOSE_SECONDS = 120.0


class RolloutWriter:
    """Writes batches and validations into ``rollouts/`` of the run folder ``root``; ``bound`` says how much stays.

    A file appears whole or not at all. What cannot be written, on a full disk or because the disk is slower than
    ``WAIT_SECONDS`` a step, is lost, said in the log and counted in ``lost``: the run goes on. ``start`` is the number
    of the start of the run, ``rank`` this process's: each writes files of its own. ``close`` waits for what is pending.
    """

    def __init__(
        self,
        root: Path,
        bound: KeptBound,
        algorithm: Penalties,
        *,
        start: int = 1,
        rank: int = 0,
        secrets: Sequence[str] = (),
    ) -> None:
        self.folder, self.bound, self.algorithm = root / FOLDER, bound, algorithm
        self.start, self.rank, self.secrets = start, rank, tuple(secrets)
        self.lost = 0
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(PENDING)
        self._thread: threading.Thread | None = None

    def continue_from(self, step: int, *, validates: bool = False) -> None:
        """Move batches from ``step`` on, and validations later than it, which an earlier start wrote and this one plays
        again, to ``replayed/``. ``validates``: the validation at ``step`` is played again, too."""
        files = kept_files(self.folder, ("train", "scores", "validate"))
        for old in self.folder.glob("*.tmp"):
            old.unlink(missing_ok=True)
        for name, path in files:
            if name.step > step or (name.step == step and (name.kind != "validate" or validates)):
                (self.folder / REPLAYED).mkdir(exist_ok=True)
                path.replace(self.folder / REPLAYED / path.name)

    def write(self, played: Played) -> None:
        """Keep the episodes of a batch or a validation. Returns at once, unless ``PENDING`` files wait already."""
        self._later(lambda: self._write(played), f"the episodes of step {played.step}")

    def write_scores(self, step: int, logprobs: Mapping[int, npt.NDArray[np.float32]]) -> None:
        """Keep the trainer's log-probs of batch ``step``: of each row's trained tokens, by `Row.row_id`."""
        path = self.folder / str(FileName("scores", step, rank=self.rank))
        self._later(lambda: self._written(scores_file, path, logprobs), f"the log-probs of step {step}")

    def run(self, work: Callable[[Path], None], what: str) -> None:
        """Let the thread do ``work`` with the folder."""
        self._later(lambda: self._written(work, self.folder), what)

    def settle(self) -> None:
        """Wait until everything so far is written, or for ``CLOSE_SECONDS``."""
        if self._thread is None:
            return
        written = threading.Event()
        self._later(written.set, "nothing")
        if not written.wait(CLOSE_SECONDS):
            log.warning(
                "the disk is slow: a checkpoint may have batches whose episodes are not kept yet",
                waiting=self._work.qsize(),
            )

    def close(self) -> None:
        """Wait for what is pending. Safe to call twice; the writer may be used again afterwards."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._work.put(None, timeout=WAIT_SECONDS)
        except queue.Full:
            log.warning("the disk is too slow: rollouts that wait to be written are lost", waiting=self._work.qsize())
            return
        thread.join(CLOSE_SECONDS)

    def _later(self, work: Callable[[], None], what: str) -> None:
        if not self.bound.keeps:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="rollout files", daemon=True)
            self._thread.start()
        try:
            self._work.put(work, timeout=WAIT_SECONDS)
        except queue.Full:
            self._lose(what, f"the disk was busy for {WAIT_SECONDS:g} s")

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001  # the run does not depend on its record
                self._lose("rollouts", f"{type(error).__name__}: {error}")

    def _write(self, played: Played) -> None:
        if isinstance(played, PlayedBatch):
            name = FileName("train", played.step, rank=self.rank)
            stamps: Mapping[str, Any] = played.stamps
        else:
            name = FileName("validate", played.step, self._number(played.step), self.start, self.rank)
            stamps = {played.domain: played.stamp}
        episodes = kept_episodes(played, self.algorithm)
        if episodes:
            self._written(episodes_file, self.folder / str(name), episodes, stamps, self.secrets)

    def _number(self, step: int) -> int:
        """The next number of a validation of this start: the domains of one have a file each."""
        taken = [name.number or 0 for name, _ in kept_files(self.folder, ("validate",)) if name.start == self.start]
        return 1 + max(taken, default=0)

    def _written(self, write: Callable[..., object], *arguments: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write(*arguments)
        for old in too_many(self.folder, self.bound) if self.rank == 0 else ():
            old.unlink(missing_ok=True)

    def _lose(self, what: str, why: str) -> None:
        self.lost += 1
        log.warning("not kept", what=what, why=why)
