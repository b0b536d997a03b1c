"""docs/templates.md against real templates: CHAT_TEMPLATES names their folder, CHAT_TOKENIZER that of a tokenizer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tau2_lightning.policy.chat_templates import template_names

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import template_table

PAGE = Path(__file__).parent.parent / "docs" / "templates.md"
FOLDER, TOKENIZER = os.environ.get("CHAT_TEMPLATES", ""), os.environ.get("CHAT_TOKENIZER", "")


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER and TOKENIZER), reason="CHAT_TEMPLATES and CHAT_TOKENIZER name no folders")
def test_the_table_is_what_becomes_of_the_templates() -> None:
    assert "\n".join(template_table.lines(Path(FOLDER), Path(TOKENIZER))) in PAGE.read_text()


def test_the_page_names_every_template_of_ours() -> None:
    page = PAGE.read_text()
    assert all(f"| `{name}` |" in page for name in template_names())
