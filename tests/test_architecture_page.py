"""docs/architecture.md and docs/where_to_change.md name files that exist, and every room of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
CHANGES = (ROOT / "docs" / "where_to_change.md").read_text()
# A path with a known ending, or a folder that ends with a slash; `<name>` stands for a name that the reader chooses.
PATH = re.compile(r"`((?:tau2_lightning|tests|conf|docs|tools|benchmarks)/[\w./<>-]*)`")


def rows() -> list[list[str]]:
    """The table's rows: (change, files, test)."""
    lines = [line for line in CHANGES.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def missing(text: str) -> list[str]:
    return [path for path in PATH.findall(text) if "<" not in path and not (ROOT / path).exists()]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_change_names_files_and_a_test_that_exist(row: list[str]):
    change, files, test = row
    assert PATH.findall(files) and PATH.findall(test), change
    assert not missing(files + test)


def test_there_are_enough_changes_and_the_check_can_fail():
    assert len(rows()) >= 15
    assert missing("`tau2_lightning/no_such_room/` `tau2_lightning/train.py`") == ["tau2_lightning/no_such_room/"]


def test_the_architecture_names_files_that_exist():
    assert PATH.findall(ARCHITECTURE)
    assert not missing(ARCHITECTURE)


def test_every_room_is_in_the_tree():
    tree = re.search(r"```\ntau2_lightning/\n(.*?)```", ARCHITECTURE, re.S)
    assert tree
    package = ROOT / "tau2_lightning"
    rooms = {path.parent.relative_to(package) for path in package.rglob("*.py")} - {Path()}
    shown = set(re.findall(r"^\s*([\w/]+)/ ", tree[1], re.M))
    families = {room for room in rooms if room.parent.name == "families"}  # one folder per model family
    assert {room.name for room in rooms - families} <= {name.rpartition("/")[2] for name in shown}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert all(module in tree[1] for module in modules)
