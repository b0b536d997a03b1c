"""The schema holds types, bounds and help; ``conf/`` holds defaults and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tau2_lightning.config.keys import Key, schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.section import Section
from tau2_lightning.run.compose import compose_dict
from tau2_lightning.run.conf_files import config_dir


def sections(section: type[Section] = RunConfig, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield prefix, section
    for key in schema_keys(section):
        if key.section is not None and "." not in key.name:
            yield from sections(key.section, f"{prefix}{key.name}.")


# Sections that take further keys.
GROWING = tuple(prefix for prefix, one in sections() if one.model_config.get("extra") == "allow")
# Sections whose keys belong to a class that `_target_` names, or to another program.
OPEN = {key.name for key in schema_keys(RunConfig) if key.kind.startswith("mapping")}


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in OPEN:
            yield from leaves(value, f"{key}.")
        else:
            yield key


SECTIONS = list(sections())
KEYS = list(schema_keys(RunConfig))


@pytest.mark.parametrize(("prefix", "section"), SECTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_no_field_has_a_default(prefix: str, section: type[Section]):
    assert not [f"{prefix}{name}" for name, field in section.model_fields.items() if not field.is_required()]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_field_has_one_line_of_help(key: Key):
    assert key.help
    assert key.section is not None or len(key.help) <= 120


@pytest.mark.parametrize("words", [(), ("actor.path=x",), ("experiment=learn",), ("experiment=learn-retail",)])
def test_every_key_of_the_files_has_a_field_and_every_field_a_key(words: tuple[str, ...]):
    in_schema = {key.name for key in schema_keys(RunConfig) if key.section is None}
    in_files = {key for key in leaves(compose_dict(words)) if key in in_schema or not key.startswith(GROWING)}
    assert in_files == in_schema


def test_bounds_and_types_are_named():
    found = {key.name: key for key in schema_keys(RunConfig)}
    assert (found["gconfig.top_p"].kind, found["gconfig.top_p"].bounds) == ("float", "> 0, <= 1")
    assert found["rollout.stragglers"].kind == "wait | drop"
    assert found["econfig.solo_mode"].kind == "bool or null"
    assert found["warm_start.weak_skills"].kind == "list of str"
    assert found["actor.lora.target_modules"].bounds == "items >= 1"


CLOSED = ["train.yaml", "actor", "rollout", "warm_start", "domain"]


@pytest.mark.parametrize("name", CLOSED)
def test_help_is_not_repeated_in_the_files(name: str):
    """Comments in a file say what its values are for; what a key means is in the schema."""
    path = config_dir() / name
    for file in [path] if path.is_file() else sorted(path.glob("*.yaml")):
        comments = re.findall(r"^\s*[\w.]+:.*?\s#\s*(.*)$", file.read_text(), re.MULTILINE)
        helps = {key.help for key in schema_keys(RunConfig)}
        assert not helps & set(comments), file


def test_a_group_that_extends_another_holds_only_its_differences():
    folder = Path(config_dir()) / "actor"
    base = yaml.safe_load((folder / "base.yaml").read_text())
    real = yaml.safe_load((folder / "hf.yaml").read_text())["actor"]
    tiny = yaml.safe_load((folder / "tiny.yaml").read_text())
    for values in (real, tiny):
        assert not set(leaves(values)) & set(leaves(base))
    assert not [key for key in leaves(real) if _at(real, key) == _at(tiny, key)]


def _at(node: Any, key: str) -> Any:
    for name in key.split("."):
        node = node[name]
    return node
