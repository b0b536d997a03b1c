"""The program of docs/first_hour.md finds the failing task of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.made_run import episode, made_run, write_episodes

from .pages import examples


def test_the_failing_task_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "outputs" / "tau2-grpo" / "first")
    played: list[dict[str, Any]] = [{"reward": float(k > 0), "transferred": k == 0} for k in range(4)]
    played += [{"reward": 0.0, "transferred": True, "transfer_expected": k == 3} for k in range(4)]
    last = [
        episode(20, k, kind="validate", status="validated", group=k // 4, sample=k % 4, number=2, **more)
        for k, more in enumerate(played)
    ]
    write_episodes(run, last, number=2)
    monkeypatch.chdir(tmp_path)
    (code,) = examples("docs/first_hour.md")
    exec(compile(code, "first_hour.md", "exec"), {})  # our own text
    assert capsys.readouterr().out.splitlines() == [
        "0 of 4 solved, 3 unasked transfers: task_1",
        "3 of 4 solved, 1 unasked transfers: task_0",
    ]
