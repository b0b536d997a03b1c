"""The table of `benchmarks/from_clone.py`: its rows add up to the commands that were timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import from_clone


def test_the_main_job_is_split_into_its_phases_and_everything_is_counted_once() -> None:
    measured = {"git clone": 3.0, "install": 57.0, "main job": 120.0, "report": 6.0, "open it": None}
    rows = from_clone.rows_of(measured, {"rollout": 60.0, "warm start": 40.0, "train": 10.0})
    assert rows[-1] == ("all", 186.0)
    assert [name for name, _ in rows] == [
        "git clone", "install", "main job", "- rollout", "- warm start", "- train", "- start, checks, end", "report",
        "open it", "all",
    ]  # fmt: skip
    assert sum(seconds or 0 for name, seconds in rows if name.startswith("- ")) == pytest.approx(120.0)
    lines = from_clone.table(rows).splitlines()
    assert "| main job | 2.00 | 65 % |" in lines and "| open it | not measured |  |" in lines


def test_a_command_that_fails_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3; see .*job\.log"):
        from_clone.timed(tmp_path / "job.log", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    assert from_clone.timed(tmp_path / "job.log", [sys.executable, "-c", "print('x')"], tmp_path) > 0
    assert (tmp_path / "job.log").read_text() == "x\n"
