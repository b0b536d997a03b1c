"""``pytest tests/cases -k models`` runs every case of models and templates: the files whose names begin with test_b."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before -k chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith("test_b") and item.path.parent.name == "cases":
            item.extra_keyword_matches.add("models")
