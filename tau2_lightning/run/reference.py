"""Every key with its help and its default: what ``--help KEY`` prints and ``docs/configuration.md`` is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tau2_lightning.config.keys import Key, schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.section import Section

from .compose import compose_dict
from .conf_files import config_dir


@dataclass(frozen=True)
class Entry:
    """A key and its default in ``conf/``. A section has none."""

    key: Key
    default: Any = None


def entries(words: Sequence[str] = ()) -> list[Entry]:
    """Every key, in the order of the schema, with the values that ``words`` compose to.

    The keys of a section that ``_target_`` makes an object of are those of its files, and their help is the comment
    there: the class is its schema, and importing classes would take seconds.
    """
    values = compose_dict(words)
    found = []
    for key in schema_keys(RunConfig):
        default = _at(values, key.name)
        if key.section is not None:
            found.append(Entry(key))
            if key.section.model_config.get("extra") == "allow":
                own = {name: value for name, value in default.items() if name not in key.section.model_fields}
                found += list(_of_files(key.name, own))
        elif key.values is not None:
            found.append(Entry(key))
            found += list(_of_names(key.name, key.values, default))
        elif isinstance(default, dict):
            found.append(Entry(key))
            found += list(_of_files(key.name, default))
        else:
            group, _, rest = key.name.partition(".")
            help_text = key.help or _comments(group).get(rest, "")
            found.append(Entry(Key(key.name, key.kind, key.bounds, help_text), default))
    return found


def shown(value: Any) -> str:
    """A value as it would be written in a YAML file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def _of_names(mapping: str, section: type[Section], default: dict[str, dict[str, Any]]) -> Iterator[Entry]:
    """The keys below each name of ``mapping``, as ``mapping.NAME.key``; sections of the run are named, not repeated."""
    example = next(iter(default.values()), {})
    for key in schema_keys(section, f"{mapping}.NAME."):
        name = key.name.split(".", 2)[2]
        if key.section is not None and "." not in name:
            help_text = f"keys of {name} in which this one of {mapping} differs"
            yield Entry(Key(key.name, f"keys of {name}", "", help_text), {})
        elif "." not in name:
            yield Entry(key, example.get(name))


def _of_files(section: str, values: dict[str, Any], prefix: str = "") -> Iterator[Entry]:
    comments = _comments(section)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _of_files(section, value, f"{key}.")
        else:
            yield Entry(Key(f"{section}.{key}", "", "", comments.get(key, "")), value)


def _at(values: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        values = values[name]
    return values


@cache
def _comments(group: str) -> dict[str, str]:
    """The comments behind the keys of a group's files; of several, the one of a file that others extend."""
    files = sorted((config_dir() / group).glob("*.yaml"))
    extended = set(re.findall(r"^  - (\w+)$", "\n".join(file.read_text() for file in files), re.MULTILINE))
    files.sort(key=lambda file: file.stem not in extended)
    found: dict[str, str] = {}
    for file in files:
        found = dict(_comments_of(file)) | found
    return found


def _comments_of(file: Path) -> Iterator[tuple[str, str]]:
    parents: list[tuple[int, str]] = []
    for line in file.read_text().splitlines():
        match = re.match(r"( *)([\w]+):(.*?)(?:\s#\s*(.*))?$", line)
        if match is None:
            continue
        indent, name, comment = len(match[1]), match[2], match[4]
        parents = [(depth, parent) for depth, parent in parents if depth < indent] + [(indent, name)]
        if comment:
            yield ".".join(parent for _, parent in parents), comment.strip()
