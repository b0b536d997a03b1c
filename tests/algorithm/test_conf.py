"""The Hydra group ``algorithm``: each file is one class, names every knob of it, and says the class's own defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tau2_lightning import algorithm

CONF = Path(__file__).parents[2] / "conf"
FILES = {
    "base": algorithm.PolicyGradient,
    "grpo": algorithm.GRPO,
    "dapo": algorithm.DAPO,
    "dr_grpo": algorithm.DrGRPO,
    "rloo": algorithm.RLOO,
    "gspo": algorithm.GSPO,
    "cispo": algorithm.CISPO,
}


def test_every_file_is_known_here() -> None:
    assert {path.stem for path in (CONF / "algorithm").glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_the_defaults_of_its_class_and_every_knob(name) -> None:
    kind = FILES[name]
    econfig = ["+econfig.turn_discount=0.9", "+econfig.invalid_format_penalty=0.1", "+gconfig.max_tokens=8192"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        group = compose(overrides=[f"+algorithm={name}", *econfig]).algorithm
    made = instantiate(group)
    assert type(made) is kind
    assert made == kind(turn_discount=0.9, invalid_format_penalty=0.1)
    assert set(group) - {"_target_"} == {f.name for f in dataclasses.fields(kind)}
