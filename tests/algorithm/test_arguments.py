"""A value of another kind than its setting is refused before anything starts, under the name of the setting."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tau2_lightning.algorithm import GRPO, PolicyGradient
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("kl_ctl", "x", "must be a finite number"),
        ("kl_ctl", float("nan"), "must be a finite number"),
        ("kl_ctl", True, "must be a finite number"),
        ("kl_ctl", -1.0, "must not be negative"),
        ("entropy_coef", None, "must have a value"),
        ("eps_clip", "foo", "must be a finite number"),
        ("unbiased", "yes", "must be true or false"),
        ("constant_length", 1.5, "must be a whole number"),
        ("proximal", "nearby", "is not one of behaviour, recompute, interpolate"),
    ],
)
def test_a_value_of_another_kind_names_its_setting(name: str, value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"algorithm.{name}=")) as error:
        GRPO(**{name: value})
    assert told in str(error.value)


def test_numbers_that_are_whole_are_numbers() -> None:
    assert GRPO(kl_ctl=1, constant_length=10, c_clip=None).kl_ctl == 1
    assert PolicyGradient(reward_clip=None).reward_clip is None


@pytest.mark.parametrize("word", ["kl_ctl=x", "eps_clip=foo", "unbiased=maybe"])
def test_a_command_line_gets_the_key_the_value_and_what_is_allowed(word: str) -> None:
    key, _, value = word.partition("=")
    config = load_config([f"algorithm.{word}"], check=False)
    with pytest.raises(ConfigError) as refusal:
        instantiate_algorithm(config)
    (found,) = refusal.value.violations
    assert found.key == f"algorithm.{key}" and str(found.value) == value and found.problem.startswith("must be")
