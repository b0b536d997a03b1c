"""docs/models.md is what tools/models_table.py makes of the code and of docs/models.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.family_sync import tolerance
from tests.strategy.families.models import CONFIGS
from tools import models_table

ROOT = Path(__file__).parents[3]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = models_table.page()
    assert made == models_table.PAGE.read_text(), "run python -m tools.models_table"
    table = [line for line in made.splitlines() if line.startswith("| ") and "`" in line]
    assert len(table) == len(CONFIGS) + 1 and all(line.count("|") == 12 for line in table)


def test_every_family_was_measured_with_an_engine_or_says_why_not() -> None:
    results = json.loads((ROOT / models_table.RESULTS).read_text())
    assert list(results) == list(CONFIGS)
    for name, found in results.items():
        if "reason" in found:
            assert found["reason"] == models_table.NOT_MEASURED
        else:
            allowed = tolerance(name)
            assert found["before"] < allowed and found["after"] < allowed and found["stale"] > 10 * allowed, name
