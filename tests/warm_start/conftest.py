"""What tests of the warm start learn from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.warm_start.test_make import RULES, dialogue


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four dialogues for each rule of the lamp."""
    file = tmp_path_factory.mktemp("data") / "lamp.jsonl"
    file.write_text("\n".join(json.dumps(dialogue(*rule)) for rule in RULES.items() for _ in range(4)))
    return file
