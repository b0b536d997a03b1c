"""A phase beyond its deadline is reported with evidence, then ended: from inside where that is possible, else the
process leaves."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stacks import knows_signal
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.run import stuck
from tau2_lightning.run.deadlines import Deadline
from tau2_lightning.run.stuck import StuckWatch
from tau2_lightning.telemetry.phases import PhaseClock
from tests.programs import Forked

SHORT = Deadline(0.4, "trainer.train_timeout", "the run ends")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("tau2_lightning.launch.stacks.ANSWER_SECONDS", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path)
    made.logs.mkdir()
    (made.logs / "engine.log").write_text("first\n" + "x" * 20_000 + "\nthe last line of the engine\n")
    return made


def watch(folder: RunFolder, clock: PhaseClock, deadline: Deadline = SHORT, **more: object) -> StuckWatch:
    return StuckWatch(clock, folder, StopSignals(60.0), lambda: {"train": deadline}, **more)  # type: ignore[arg-type]


def evidence(folder: RunFolder) -> dict[str, str]:
    """The files of the only report."""
    (report,) = (folder.root / "stuck").iterdir()
    assert report.name == "01-train-rank0"
    return {path.name: path.read_text() for path in report.iterdir()}


def computes_for_ever() -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        sum(range(100))


def waits_for_a_lock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=60)


CHILD = """
import sys, time
from pathlib import Path
from tau2_lightning.launch.stacks import StackFile
def child_that_waits():
    print("up", flush=True)
    time.sleep(60)
with StackFile(Path(sys.argv[1]), "rank1"):
    child_that_waits()
"""


@pytest.fixture
def children(folder: RunFolder) -> Iterator[list[subprocess.Popen[str]]]:
    """One that answers with its stacks, and one that knows nothing of it and may not be harmed."""
    commands = [[sys.executable, "-c", CHILD, str(folder.logs)], ["sleep", "60"]]
    made = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert made[0].stdout is not None and made[0].stdout.readline() == "up\n"
    yield made
    for child in made:
        child.kill()
        child.wait(10)


@pytest.mark.parametrize("work", [computes_for_ever, waits_for_a_lock])
def test_the_main_thread_raises_and_the_evidence_is_kept(
    work: object, folder: RunFolder, children: list[subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    clock = PhaseClock()
    where = ["task t-7, sample 3: 512 s, in user for 500 s"]
    began = time.monotonic()
    with (
        pytest.raises(
            DeadlineExceeded, match=r"train: timeout: .*0\.4 s while in phase 'train' \(trainer\.train_timeout"
        ),
        watch(folder, clock, whereabouts=lambda: where),
        clock.phase("train"),
    ):
        work()  # type: ignore[operator]
    assert time.monotonic() - began < 20 and clock.current == "idle"
    files = evidence(folder)
    name = work.__name__  # type: ignore[attr-defined]
    assert name in files["stacks-this-process.txt"] and name in files["what.txt"] and where[0] in files["what.txt"]
    assert "child_that_waits" in files["tail-stacks-rank1.txt"]
    assert (
        files["tail-engine.log"].endswith("the last line of the engine\n") and "first" not in files["tail-engine.log"]
    )
    assert str(children[0].pid) in files["processes.txt"] and "sleep 60" in files["processes.txt"]
    assert all(child.poll() is None for child in children), "nobody may be harmed"
    told = capsys.readouterr().err
    assert told.count("stuck: phase 'train' for ") == 1 and "its deadline is 0.4 s (trainer.train_timeout)" in told
    assert where[0] in told and str(folder.root / "stuck") in told


def test_a_phase_that_ends_itself_is_reported_and_left_alone(folder: RunFolder) -> None:
    clock = PhaseClock()
    own = Deadline(0.4, "key", "it ends itself", own=True)
    with watch(folder, clock, own), clock.phase("train"):
        time.sleep(1.0)
    assert "it ends itself" in evidence(folder)["what.txt"]


def test_in_time_nothing_is_said_and_no_file_stays(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control. Many short phases are no long one."""
    clock = PhaseClock()
    with watch(folder, clock):
        for _ in range(10):
            with clock.phase("train"):
                time.sleep(0.1)
        with clock.phase("other"):
            time.sleep(0.6)
    assert not (folder.root / "stuck").exists() and "stuck" not in capsys.readouterr().err
    assert [path.name for path in folder.logs.iterdir()] == ["engine.log"]


def test_only_processes_with_a_handler_get_the_signal(children: list[subprocess.Popen[str]]) -> None:
    assert knows_signal(children[0].pid) and not knows_signal(children[1].pid) and not knows_signal(2**22 + 1)


# Two locks of one mutex: no signal and no exception gets a thread out of there.
DEADLOCK = """
import ctypes, sys
from pathlib import Path
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.run import stuck
from tau2_lightning.run.deadlines import Deadline
from tau2_lightning.telemetry.phases import PhaseClock
stuck.POLL_SECONDS = 0.05
def deadlocks():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
folder, clock, stops = RunFolder(Path(sys.argv[1])), PhaseClock(), StopSignals(0.5)
folder.logs.mkdir()
stops.kept = lambda: "all complete training steps are saved"
with stuck.StuckWatch(clock, folder, stops, lambda: {"train": Deadline(0.3, "key", "the run ends")}):
    with clock.phase("train"):
        deadlocks()
"""


def test_a_main_thread_that_no_exception_reaches_leaves_with_exit_code_1(tmp_path: Path) -> None:
    with Forked(["-c", DEADLOCK, str(tmp_path)], tmp_path / "screen.txt") as process:
        code, told = process.wait(), process.printed
    assert code == 1, told
    assert "phase 'train' does not end" in told and "all complete training steps are saved" in told
    assert "deadlocks" in evidence(RunFolder(tmp_path))["stacks-this-process.txt"]
