"""A forked program of tests/programs.py is what ``python`` would have started, only sooner."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.fork_server import IMPORTS
from tests.programs import Forked, Start, forked, spawned

SHOW = """
import os, signal, sys
assert __name__ == "__main__" and os.getsid(0) == os.getpid(), "a session of its own"
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
print(sys.argv[1:], os.environ.get("ONLY_HERE"), os.getcwd(), flush=True)
print("problem", file=sys.stderr)
sys.exit(3)
"""
SERVER = """
import json, os, sys
from pathlib import Path
print(json.dumps(list(sys.modules)))
print(json.dumps([file.read_text().strip() for file in Path(f"/proc/{os.getppid()}/task").glob("*/comm")]))
"""
WAIT = "import time; print('up', flush=True); time.sleep(600)"
KINDS = pytest.mark.parametrize("start", [spawned, forked])


@KINDS
def test_words_environment_folder_output_and_exit_code(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_HERE", "yes")
    monkeypatch.chdir(tmp_path)
    process = start(["-c", SHOW, "one", "two"], tmp_path / "screen.txt")
    assert process.wait(60) == 3
    assert (tmp_path / "screen.txt").read_text() == f"['one', 'two'] yes {tmp_path}\nproblem\n"


@KINDS
def test_a_module_runs_as_the_main_one(start: Start, tmp_path: Path) -> None:
    (tmp_path / "given.json").write_text("[1]")
    process = start(["-m", "json.tool", "--compact", str(tmp_path / "given.json")], tmp_path / "screen.txt")
    assert process.wait(60) == 0 and (tmp_path / "screen.txt").read_text() == "[1]\n"


@KINDS
def test_an_error_is_shown_and_the_code_is_1(start: Start, tmp_path: Path) -> None:
    assert start(["-c", "raise ValueError('wrong')"], tmp_path / "screen.txt").wait(60) == 1
    assert "ValueError: wrong\n" in (tmp_path / "screen.txt").read_text()


@KINDS
def test_signals_reach_it_and_the_code_says_which(start: Start, tmp_path: Path) -> None:
    process = start(["-c", WAIT], tmp_path / "screen.txt")
    ends = time.monotonic() + 60
    while (not (screen := tmp_path / "screen.txt").exists() or not screen.read_text()) and time.monotonic() < ends:
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)
    ends = time.monotonic() + 20
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < ends
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)


def test_at_the_end_of_its_block_a_forked_one_is_gone(tmp_path: Path) -> None:
    with Forked(["-c", WAIT], tmp_path / "screen.txt") as process:
        process.until("up")
    assert process.poll() == -signal.SIGKILL


def test_the_process_that_is_forked_has_one_thread_and_all_imports(tmp_path: Path) -> None:
    """A fork inherits no thread, but the locks that others hold. jemalloc (of pyarrow) looks after its own."""
    with Forked(["-c", SERVER], tmp_path / "screen.txt") as process:
        assert process.wait() == 0, process.printed
        imported, threads = process.printed.splitlines()
    assert set(IMPORTS) <= set(json.loads(imported))
    assert len([name for name in json.loads(threads) if name != "jemalloc_bg_thd"]) == 1
