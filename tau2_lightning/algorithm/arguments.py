"""Checks the values of an algorithm's settings by the types of its fields."""

from __future__ import annotations

import math
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints


def check_arguments(algorithm: Any) -> None:
    """Raises ValueError, naming the setting and what is allowed, for a value of another kind than its field.

    Fields of numbers take finite numbers (whole ones where the field is an int), fields of choices one of them. A field
    of any other type is the algorithm's own to check.
    """
    hints = get_type_hints(type(algorithm))
    for field in fields(algorithm):
        kinds, value = get_args(hints[field.name]) or (hints[field.name],), getattr(algorithm, field.name)
        if (problem := _problem(value, kinds)) is not None:
            raise ValueError(f"algorithm.{field.name}={value!r} {problem}")


def _problem(value: Any, kinds: tuple[Any, ...]) -> str | None:
    if choices := [kind for kind in kinds if isinstance(kind, str)]:
        return None if value in kinds else f"is not one of {', '.join(choices)}"
    known = set(kinds) - {NoneType}
    if not known or not known <= {bool, int, float}:
        return None
    if value is None:
        return None if NoneType in kinds else "must have a value"
    if known == {bool}:
        return None if isinstance(value, bool) else "must be true or false"
    if known == {int}:
        return None if isinstance(value, int) and not isinstance(value, bool) else "must be a whole number"
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return None if is_number else "must be a finite number"
