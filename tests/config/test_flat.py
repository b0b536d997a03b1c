"""A configuration under the words of the command line."""

from __future__ import annotations

from tau2_lightning.config.flat import flattened
from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.run.compose import load_config


def test_nested_values_have_dotted_names() -> None:
    nested = {"seed": 1, "actor": {"optimizer": {"lr": 0.1}, "path": None}, "domains": {}, "tags": ["a"]}
    assert flattened(nested) == {"seed": 1, "actor.optimizer.lr": 0.1, "actor.path": None, "tags": ["a"]}


def test_the_words_of_a_run_are_found_again() -> None:
    words = {"gconfig.n_samples": 4, "actor.optimizer.lr": 0.001, "econfig.domain": "mock", "trial_name": "t"}
    config = load_config(["domain=mock", *(f"{key}={value}" for key, value in words.items())], check=False)
    flat = flattened(without_secrets(config))
    assert words.items() <= flat.items()
    assert not any(isinstance(value, dict) for value in flat.values())
