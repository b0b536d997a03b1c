"""Sections of the configuration for tests: the defaults of ``conf/`` with some values changed."""

from __future__ import annotations

from typing import Any, TypeVar

from tau2_lightning.config.section import Section
from tau2_lightning.run.compose import compose_dict

Kind = TypeVar("Kind", bound=Section)


def section(kind: type[Kind], key: str, **changed: Any) -> Kind:
    """The section at the dotted ``key`` (``actor.optimizer``), validated as ``kind``."""
    values: dict[str, Any] = compose_dict()
    for name in key.split("."):
        values = values[name]
    return kind.model_validate(values | changed)
