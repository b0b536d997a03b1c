"""Every command in the README and the docs composes: its keys exist and its values have the right types."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tau2_lightning import sft
from tau2_lightning.errors import ConfigError
from tau2_lightning.run import exporting
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.sweep import sweep

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENTRY = re.compile(r"-m tau2_lightning\.(train|sft|serve|rollout\.proxy)\b(.*)")
EXPORT = re.compile(r"-m tau2_lightning\.export\b(.*)")


def documented_commands() -> list[list[str]]:
    """The words after `-m tau2_lightning.train` and the other commands in code blocks, with continued lines joined."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            match = ENTRY.search(line)
            if match and "`" not in line and "..." not in match[2]:
                words = shlex.split(match[2], comments=True)
                found.append([sft.in_section(word) for word in words] if match[1] == "sft" else words)
    return found


@pytest.mark.parametrize("words", documented_commands(), ids=" ".join)
def test_documented_command_composes(words: list[str]):
    if "--multirun" in words:
        sweep([word for word in words if "=" in word])
    elif "--help" not in words:
        load_config([word for word in words if "=" in word], check=False)


def test_there_are_commands_and_the_check_can_fail():
    assert len(documented_commands()) > 15
    with pytest.raises(ConfigError, match="gconfig.n_sample"):
        load_config(["gconfig.n_sample=4"], check=False)


def test_documented_exports_have_keys_that_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    found = [shlex.split(match[1], comments=True) for match in EXPORT.finditer(text) if "`" not in match[1]]
    assert len(found) > 3
    for words in found:
        with pytest.raises(ConfigError, match="no such folder"):  # all else is right
            exporting.Export.of(words)
