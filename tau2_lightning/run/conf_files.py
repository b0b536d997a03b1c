"""Where the files of ``conf/`` are, and what they hold."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml


def config_dir() -> Path:
    """The folder of the Hydra groups: inside an installed package, else at the top of the repository."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


@cache
def shipped_entries(group: str) -> dict[str, Any]:
    """The entries of all files of ``conf/<group>``, by name."""
    entries: dict[str, Any] = {}
    for path in sorted((config_dir() / group).glob("*.yaml")):
        entries |= yaml.safe_load(path.read_text()) or {}
    return entries
