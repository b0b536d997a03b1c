"""A near key is suggested; for one that is near to none, what its section has."""

from __future__ import annotations

import pytest

from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.nearest import suggestion


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("gconfig.temprature", "gconfig.temperature"),
        ("rolout.retries", "rollout.retries"),
        ("learning_rate", "warm_start.learning_rate"),
        ("actor.optimiser.lr", "actor.optimizer.lr"),
        ("actor.lora.lr", "actor.optimizer.lr"),
        ("max_epoch", "trainer.max_epochs"),
    ],
)
def test_near_keys_are_suggested(word: str, meant: str) -> None:
    known = [one.name for one in schema_keys(RunConfig)]
    assert suggestion(word, known) == f"Did you mean {meant}?"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("gconfig.bogus=1", r"gconfig\.bogus='1': no such key\. Keys of gconfig: .*max_new_tokens, .*n_samples, "),
        ("actor.lora.rank=8", r"Keys of actor\.lora: alpha, base_dtype, r, sync, target_modules"),
        ("xyzzy.plugh=1", r"Keys and sections: actor, .*allocation_mode, .*warm_start"),
        ("domains.retail.xyzzy=1", r"Keys of domains\.retail: .*econfig, .*weight"),
    ],
)
def test_others_get_the_keys_of_their_section(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        load_config(["domain=[telecom,retail]", "domains.retail.econfig.user=scripted", word], check=False)
    assert "Did you mean" not in str(error.value)
