"""Every key of the configuration with its type, bounds and help, read from the schema."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from .section import Section

_SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt"), MinLen: ("items >=", "min_length")}


@dataclass(frozen=True)
class Key:
    """One dotted key. ``section`` is set where the key names a section, whose keys follow it; ``values`` where it is a
    mapping of names to sections.
    """

    name: str
    kind: str
    bounds: str
    help: str
    section: type[Section] | None = None
    values: type[Section] | None = None


def schema_keys(section: type[Section], prefix: str = "") -> Iterator[Key]:
    """The keys of ``section`` and of the sections in it, in the order of the schema; ``prefix`` ends with a dot."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            help_text = " ".join((kind.__doc__ or "").split())
            yield Key(f"{prefix}{name}", "section", "", help_text, kind)
            yield from schema_keys(kind, f"{prefix}{name}.")
        else:
            key = Key(f"{prefix}{name}", type_name(kind), _bounds(field), field.description or "")
            yield replace(key, values=_sections_of(kind))


def _sections_of(annotation: Any) -> type[Section] | None:
    """The section that the values of a mapping are."""
    value = get_args(annotation)[1] if get_origin(annotation) is dict else None
    return value if isinstance(value, type) and issubclass(value, Section) else None


def type_name(annotation: Any) -> str:
    """A type in words: ``int or null``, ``wait | drop``, ``list of str``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        shown = [type_name(one) for one in arguments if one is not type(None)]
        return " or ".join([*shown, "null"] if type(None) in arguments else shown)
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    name = str(annotation.__name__)
    return {"Path": "path"}.get(name, name)


def _bounds(field: FieldInfo) -> str:
    found = []
    for one in field.metadata:
        if type(one) in _SIGNS:
            sign, attribute = _SIGNS[type(one)]
            found.append(f"{sign} {getattr(one, attribute):g}")
    return ", ".join(found)
