"""The faults that `make chaos` injects into runs: what is done where, and what the run must do about it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from .runs import Run

Do = Callable[[Run], None]
STEPS = 6  # of a run
EVERY = "trainer.checkpoint_every_n_steps=1"
# A checkpoint at the end only, so that what is saved at the fault shows.
SELDOM = "trainer.checkpoint_every_n_epochs=9"
# A second rank, which counts as lost after five seconds.
RANKS = (EVERY, "allocation_mode=vllm:d1+archon:d2", "trainer.rank_timeout=5", "trainer.grace_seconds=3")


@dataclass(frozen=True)
class Fault:
    """``name`` in the table. The run stands still at ``hold`` of its first start, where ``do`` is done to it.
    Without a ``hold`` ``do`` finds its place, or the fault is in the process itself: ``plant`` of `job.PLANTS`.

    ``code`` is the exit code; ``says`` must be on the screen. ``lost`` is the number of completed training steps that a
    resumed run makes again, ``loses`` says it in words. ``same``: the run ends with the weights and the metrics of an
    undisturbed one, to the bit, where that can be compared. ``real``: needs a real engine (minutes).
    ``counted``: a metric in whose values the fault must show.
    """

    name: str
    phase: str
    hold: str = ""
    do: Do | None = None
    plant: str = "nothing"
    words: tuple[str, ...] = ()
    code: int = 0
    says: str = ""
    lost: int = 0
    loses: str = "nothing"
    same: bool = True
    real: bool = False
    counted: str = ""

    @property
    def comparable(self) -> bool:
        """Whether an undisturbed run computes the same: real episodes do not repeat, and several ranks add in another
        order."""
        return not self.real and not any(word.startswith("allocation_mode=") for word in self.words)

    @property
    def key(self) -> str:
        return f"{self.name} / {self.phase}"


def kill(number: signal.Signals) -> Do:
    """Send the run a signal."""
    return lambda run: run.send(number)


def stop_for(seconds: float) -> Do:
    """Stop the run's process, as a suspended machine or a debugger would, and let it go on after ``seconds``."""

    def do(run: Run) -> None:
        run.send(signal.SIGSTOP)
        time.sleep(seconds)
        run.send(signal.SIGCONT)
        run.go_on()

    return do


def twice(number: signal.Signals) -> Do:
    """The signal, and again a second later."""

    def do(run: Run) -> None:
        run.send(number)
        time.sleep(1.0)
        run.send(number)

    return do


def signal_and_go(number: signal.Signals) -> Do:
    """Send the signal, then let the phase go on: a training step is completed first."""

    def do(run: Run) -> None:
        run.send(number)
        time.sleep(0.5)
        run.go_on()

    return do


def second_run(run: Run) -> None:
    """Start the same run once more while it runs."""
    other = Run(run.again, run.again, run.root, run.launch)
    other.start()
    assert other.end() == 2, other.screen
    assert other.says(r"is in use by process \d+"), other.screen
    run.go_on()


def reader_gone(run: Run) -> None:
    """Kill the process that reads the run's screen; the run goes on where nothing ends it."""
    (reader,) = (one for one in psutil.Process(run.pid).children() if "os.read" in " ".join(one.cmdline()))
    reader.kill()
    time.sleep(0.5)
    run.go_on()


def lost_rank(number: signal.Signals) -> Do:
    """Send the second rank a signal; the first one goes on into the collectives of the step."""

    def do(run: Run) -> None:
        below = psutil.Process(run.pid).children()
        (rank,) = (one for one in below if "tests.chaos.job" in " ".join(one.cmdline()))
        rank.send_signal(number)
        run.go_on()

    return do


def damaged(spoil: Callable[[Path], None]) -> Do:
    """Kill the run, then damage its newest checkpoint."""

    def do(run: Run) -> None:
        run.send(signal.SIGKILL)
        time.sleep(0.5)
        newest = run.folder.last_checkpoint()
        assert newest is not None
        spoil(next(newest.glob("*.distcp")))

    return do


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


KILLED, TERMINATED, INTERRUPTED, HUNG_UP = 137, 143, 130, 129
BATCH = "the episodes of the batch"
FAULTS = (
    Fault("kill -9", "rollout", "rollout:4", kill(signal.SIGKILL), words=(EVERY,), code=KILLED, loses=BATCH),
    Fault("kill -9", "train", "train:4", kill(signal.SIGKILL), words=(EVERY,), code=KILLED, loses="that step"),
    Fault("kill -9", "weight sync", "weight sync:3", kill(signal.SIGKILL), words=(EVERY,), code=KILLED),
    Fault("kill -9", "save", "save:3", kill(signal.SIGKILL), words=(EVERY,), code=KILLED, lost=1, loses="one step"),
    Fault("kill -9, a validation done", "save", "save:4", kill(signal.SIGKILL), words=(EVERY,), code=KILLED),
    Fault("kill -9", "validate", "validate:1", kill(signal.SIGKILL), words=(EVERY,), code=KILLED,
          loses="the episodes of the validation"),
    Fault("kill -9, no checkpoints", "rollout", "rollout:4", kill(signal.SIGKILL), words=(SELDOM,), code=KILLED, lost=3,
          loses="all steps since the start"),
    Fault("SIGTERM", "rollout", "rollout:4", kill(signal.SIGTERM), words=(SELDOM,), code=TERMINATED, loses=BATCH,
          says="stopping, within 25 s"),
    Fault("SIGTERM", "train", "train:4", signal_and_go(signal.SIGTERM), words=(SELDOM,), code=TERMINATED,
          says="ckpt_path=last"),
    Fault("SIGTERM", "weight sync", "weight sync:3", kill(signal.SIGTERM), words=(SELDOM,), code=TERMINATED),
    Fault("SIGTERM", "save", "save:1", signal_and_go(signal.SIGTERM), words=("trainer.checkpoint_every_n_steps=3",),
          code=TERMINATED),
    Fault("SIGTERM twice", "train", "train:4", twice(signal.SIGTERM), words=(EVERY,), code=TERMINATED,
          says="SIGTERM again: leaving at once", loses="that step"),
    Fault("SIGTERM, no end in time", "train", "train:4", kill(signal.SIGTERM),
          words=(EVERY, "trainer.grace_seconds=2"), code=TERMINATED, says="still in phase 'train' after 2 s",
          loses="that step"),
    Fault("Ctrl-C", "rollout", "rollout:4", kill(signal.SIGINT), words=(SELDOM,), code=INTERRUPTED, loses=BATCH),
    Fault("SIGTERM", "validate", "validate:1", kill(signal.SIGTERM), words=(SELDOM,), code=TERMINATED,
          loses="the episodes of the validation"),
    Fault("terminal closed (SIGHUP)", "rollout", "rollout:4", reader_gone, plant="terminal",
          words=(SELDOM, "trainer.progress=auto"), code=HUNG_UP, loses=BATCH),
    Fault("reader of the screen killed", "train", "train:4", reader_gone, plant="piped",
          words=("trainer.progress=plain",)),
    Fault("SIGSTOP for 5 s", "train", "train:4", stop_for(5.0)),
    Fault("SIGSTOP for 5 s", "rollout", "rollout:4", stop_for(5.0)),
    Fault("hung", "train", "train:4", words=(SELDOM, "trainer.train_timeout=12"), code=1, loses="that step",
          says="stuck: phase 'train' for"),
    Fault("hung", "save", "save:3", words=(EVERY, "trainer.save_timeout=3"), code=1, lost=1, loses="one step",
          says="stuck: phase 'save' for"),
    Fault("two runs", "train", "train:4", second_run),
    Fault("corrupt newest checkpoint", "rollout", "rollout:4", damaged(flip), words=(EVERY,), code=KILLED, lost=1,
          loses="one step"),
    Fault("truncated newest checkpoint", "rollout", "rollout:4", damaged(truncate), words=(EVERY,), code=KILLED, lost=1,
          loses="one step"),
    Fault("emptied newest checkpoint", "rollout", "rollout:4", damaged(empty), words=(EVERY,), code=KILLED, lost=1,
          loses="one step"),
    Fault("full disk", "save", plant="full_disk", words=(EVERY,), code=1, lost=1, loses="one step",
          says="the disk is full"),
    Fault("read-only disk", "save", plant="read_only", words=(EVERY,), code=1, lost=1, loses="one step",
          says="the file system is read-only"),
    Fault("full disk", "log", plant="full_log", says="the log has gaps: No space left on device", same=False,
          loses="lines of the log"),
    Fault("full disk", "metrics", plant="full_record", words=(SELDOM,), code=1, says="No space left on device"),
    Fault("GPU out of memory", "train", plant="out_of_memory", words=(SELDOM,), code=1, says="CUDA out of memory",
          loses="that step"),
    Fault("rank killed", "collective", "train:4", lost_rank(signal.SIGKILL), words=RANKS, code=1,
          says="stuck: rank 1 was ended by SIGKILL", loses="that step"),
    Fault("rank stopped", "collective", "train:4", lost_rank(signal.SIGSTOP), words=RANKS, code=1,
          says="rank 1, process .* which is stopped", loses="that step"),
    Fault("NaN gradient", "train", plant="nan_gradient", says="this optimizer step is left out", loses="that step",
          same=False),
    Fault("NaN gradients without end", "train", plant="nan_gradients", words=(SELDOM, "trainer.max_skipped_steps=1"),
          code=1, says="optimizer steps had no finite gradient", loses="nothing", same=False),
    Fault("NaN weight", "train", plant="nan_weight", words=(EVERY,), code=1, says="not finite: ", lost=1,
          loses="one step"),
    Fault("clock step", "rollout", plant="clock_step", words=(EVERY,)),
    Fault("engine given up", "rollout", plant="engine_gone", words=(SELDOM,), code=1, loses=BATCH,
          says="engine 0 died 6 times"),
    Fault("user refused", "rollout", plant="user_refused", words=(SELDOM,), code=1, loses=BATCH,
          says="user: connection"),
    Fault("defect of this program", "rollout", plant="defect", words=(SELDOM,), code=1, loses=BATCH,
          says="ZeroDivisionError"),
)  # fmt: skip
# Those that `make test` injects: one of each kind that is not a case of its own in tests/cases.
QUICK = frozenset({
    "kill -9 / train", "kill -9 / weight sync", "kill -9 / save", "SIGTERM / save", "SIGTERM / weight sync",
    "SIGSTOP for 5 s / train", "hung / save", "kill -9 / validate", "truncated newest checkpoint / rollout",
    "read-only disk / save", "clock step / rollout", "defect of this program / rollout",
})  # fmt: skip
