"""The version is semantic and written once; the changelog has the form that it says it has."""

from __future__ import annotations

import re
import tomllib

import tau2_lightning

from .pages import ROOT

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
HEADING = re.compile(r"\[(?:Unreleased|\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2})\]?")


def test_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tau2_lightning.__version__ == version
    assert re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", version)


def test_the_changelog_has_its_form() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.M)
    assert headings[0] == "[Unreleased]"
    assert all(HEADING.fullmatch(one) for one in headings)
    assert set(re.findall(r"^### (.*)$", CHANGELOG, re.M)) <= KINDS
    assert HEADING.fullmatch("[0.1.0] - 2027-01-31") and not HEADING.fullmatch("0.1.0")
