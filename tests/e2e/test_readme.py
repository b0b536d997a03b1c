"""The README's Python example runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.run import prepared
from tau2_lightning.run.compose import load_config
from tests.e2e.test_main_job import words  # noqa: F401  # the session's engine and small data

pytestmark = pytest.mark.e2e

README = (Path(__file__).parents[2] / "README.md").read_text()


def example() -> str:
    found = re.search(r"<!-- example: executed by tests/e2e/test_readme.py -->\n```python\n(.*?)```", README, re.S)
    assert found, "the README has lost its example"
    return found.group(1)


def test_the_example_is_short():
    assert len([line for line in example().splitlines() if line.strip()]) <= 25


def test_the_example_runs(words, reference, tmp_path, monkeypatch):  # noqa: F811
    """As printed, but with the session's engine, little data and a policy that it can serve."""
    small = ["warm_start.steps=2", "warm_start.demonstrations=20", f"actor.path={reference.folders['A']}"]
    kept = [word for word in words if not word.startswith(("train_dataset", "valid_dataset"))]
    monkeypatch.setattr(prepared, "load_config", lambda given: load_config([*given, *kept, *small]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example(), "README.md", "exec"), names)  # our own text
    evaluations = names["data"].evaluations
    assert len(evaluations) == 2
    assert all(evaluation.summary.episodes == 20 for evaluation in evaluations)
    assert names["module"].weights_version == 2
    assert (names["run"].root / "report.html").is_file()
