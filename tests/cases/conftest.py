"""What the cases share.

``pytest tests/cases -k models`` runs every case of models and templates: the files whose names begin with test_b.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.runs import Runs
from tests.jobs import small_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return small_policy(tmp_path_factory)


@pytest.fixture
def runs(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The main job of ``policy`` without an engine."""
    return Runs(policy, tmp_path, monkeypatch)


@pytest.hookimpl(tryfirst=True)  # before -k chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith("test_b") and item.path.parent.name == "cases":
            item.extra_keyword_matches.add("models")
