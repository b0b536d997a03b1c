"""docs/configuration.md agrees with the schema and conf/; every comment of an open section reaches ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.run.reference import entries, shown

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import config_reference


def test_the_page_is_up_to_date():
    assert config_reference.PAGE.read_text() == config_reference.page(), "run python tools/config_reference.py"


def test_the_page_has_every_key():
    text = config_reference.PAGE.read_text()
    assert not [
        key.name for key in schema_keys(RunConfig) if f"`{key.name}`" not in text and f"## {key.name}" not in text
    ]


@pytest.mark.parametrize("choice", ["grpo", "cispo", "dapo", "dr_grpo", "gspo", "rloo"])
def test_every_key_of_an_algorithm_has_help(choice: str):
    keys = [one.key for one in entries([f"algorithm={choice}"]) if one.key.name.startswith("algorithm")]
    assert len(keys) > 20
    assert not [key.name for key in keys if not key.help]


def test_words_change_the_defaults():
    found = {one.key.name: one.default for one in entries(["actor.path=x", "gconfig.n_samples=3"])}
    assert (found["actor.dtype"], found["gconfig.n_samples"]) == ("auto", 3)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ([1, "a"], "[1, a]"), ([], "[]"), (0.5, "0.5"), ("x", "x")]
)
def test_values_are_shown_as_yaml(value: object, text: str):
    assert shown(value) == text
