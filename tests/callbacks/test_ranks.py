"""A rank that is gone, frozen or failed is named by the others, which do not wait half an hour in a collective."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tau2_lightning.launch.net import free_port
from tau2_lightning.strategy.launcher import ended_in_words

WORLD = 3
LONGEST = 300.0  # of a collective that nobody ends: half an hour


def ranks(root: Path, do: str, *, slow: float = 0.0) -> tuple[list[int | None], list[str]]:
    """Exit codes of the ranks (None: it had to be killed here), and what each printed. They end within ``LONGEST``.

    Their disk takes ``slow`` seconds for a file.
    """
    (root / "logs").mkdir()
    port = free_port("127.0.0.1")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    rest = [str(WORLD), str(port), str(root), do, str(slow)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.callbacks.rank_job", str(rank), *rest],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    codes: list[int | None] = []
    try:
        for rank, process in enumerate(processes):
            if rank == WORLD - 1 and do == "SIGSTOP":
                process.send_signal(signal.SIGKILL)
                codes.append(None)
            else:
                codes.append(process.wait(LONGEST))
        printed = [process.stderr.read() if process.stderr else "" for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(10)
    return codes, printed


@pytest.mark.parametrize(
    ("do", "named"),
    [
        ("SIGSTOP", "which is stopped, in phase train, for"),
        ("SIGKILL", "which is gone, in phase train, for"),
        ("raise", "ended with OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_a_lost_rank_is_named_and_the_others_end(do: str, named: str, tmp_path: Path) -> None:
    """A collective with a lost rank fails at once, and the main thread would end this process before a slow disk has
    the evidence: it waits."""
    codes, printed = ranks(tmp_path, do, slow=1.0)
    assert codes[:2] == [1, 1], printed
    assert f"rank {WORLD - 1}, process " in printed[0] and named in printed[0], printed[0]
    assert "rank_job.py" in printed[0], "and where this rank itself waits"
    folder = tmp_path / "stuck" / "lost-rank-seen-by-rank0"
    assert named in (folder / "what.txt").read_text()
    assert {"stacks-this-process.txt", "processes.txt"} <= {path.name for path in folder.iterdir()}


def test_ranks_that_live_are_left_alone_also_when_one_is_done_earlier(tmp_path: Path) -> None:
    """Negative control."""
    codes, printed = ranks(tmp_path, "nothing")
    assert codes == [0, 0, 0] and not any("stuck" in text for text in printed), printed
    assert not (tmp_path / "stuck").exists()


def test_a_rank_that_ends_before_training_is_named_and_so_is_how(tmp_path: Path) -> None:
    """Lightning's own observer would kill this process, without a word."""
    assert ended_in_words(-9) == "was ended by SIGKILL" and ended_in_words(2) == "ended with exit code 2"
    program = """
import subprocess, sys, time
from tau2_lightning.strategy.launcher import RankLauncher
launcher = object.__new__(RankLauncher)
launcher.ended = launcher._leave
programs = ("import time; time.sleep(60)", "raise SystemExit(3)")
launcher.procs = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
pids = [process.pid for process in launcher.procs]
print(pids[0], flush=True)
import threading
threading.Thread(target=launcher._observe, args=(launcher.procs,), daemon=True).start()
time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONGEST, env=environment
    )
    assert done.returncode == 1 and "error: rank 2 ended with exit code 3 before training began" in done.stderr
    ends = time.monotonic() + 10
    while Path(f"/proc/{done.stdout.strip()}/cmdline").exists() and time.monotonic() < ends:
        state = Path(f"/proc/{done.stdout.strip()}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{done.stdout.strip()}").exists(), "the other ranks are ended, too"
