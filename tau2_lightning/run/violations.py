"""What pydantic finds wrong with a composed configuration, in this project's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tau2_lightning.config.secrets import masked
from tau2_lightning.config.trainer_words import refused
from tau2_lightning.errors import Violation

from .words import HELP

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def violations_of(raw: Mapping[str, Any], error: ValidationError) -> list[Violation]:
    """One violation for each key of ``raw`` that ``error`` names. Values show no secrets."""
    found: dict[str, Violation] = {}
    for item in error.errors():
        one = _violation(raw, item)
        first = found.setdefault(one.key, one)
        if first is not one:  # the types of a union, each with its own complaint
            found[one.key] = Violation(one.key, first.value, f"{first.problem}, or {one.problem}", one.remedy)
    return list(found.values())


def key_of(raw: Mapping[str, Any], item: ErrorDetails) -> list[str]:
    """The path of the key that ``item`` is about: its location without pydantic's names for the types of a union."""
    path: list[str] = []
    node: Any = raw
    for part in map(str, item["loc"]):
        known = isinstance(node, Mapping) and part in node
        if not known and item["type"] != "missing":
            break
        path.append(part)
        node = node[part] if known else None
    return path


def _violation(raw: Mapping[str, Any], item: ErrorDetails) -> Violation:
    key = ".".join(key_of(raw, item))
    if item["type"] == "missing":  # its input is the whole section
        return Violation(key, "", "was removed, and has no default elsewhere", f"Leave ~{key} out")
    value = masked(key, item["input"])
    if item["type"] == "extra_forbidden":
        return refused(key, value) or Violation(key, value, "no such key", HELP)
    return Violation(key, value, item["msg"][0].lower() + item["msg"][1:], f"See --help {key}")
