"""``trainer.*``: every argument of Lightning's Trainer is passed on, or refused with the reason and the key to use."""

from __future__ import annotations

import inspect

import lightning as L
import pytest

from tau2_lightning.config.trainer import TrainerConfig
from tau2_lightning.config.trainer_words import REFUSED
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.trainer_rules import length_in_words


def test_every_argument_of_the_trainer_is_a_key_or_refused_and_none_is_both() -> None:
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    keys = set(TrainerConfig.model_fields)
    assert not arguments - keys - REFUSED.keys()
    assert not REFUSED.keys() & keys
    assert REFUSED.keys() <= arguments


@pytest.mark.parametrize("plus", ["", "+"])
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("precision=16-mixed", r"trainer\.precision='16-mixed': cannot be set.*actor\.precision"),
        ("gradient_clip_val=0.5", r"trainer\.gradient_clip_val=.*actor\.optimizer\.gradient_clipping"),
        ("accumulate_grad_batches=2", r"trainer\.accumulate_grad_batches=.*actor\.max_tokens_per_mb"),
        ("strategy=ddp", r"trainer\.strategy='ddp'.*allocation_mode"),
        ("devices=2", r"trainer\.devices=.*allocation_mode"),
        ("enable_checkpointing=false", r"trainer\.enable_checkpointing=.*trainer\.save_top_k=0"),
    ],
)
def test_what_cannot_hold_is_refused_with_the_key_to_use(plus: str, word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config([f"{plus}trainer.{word}"])


def test_another_unknown_key_is_still_unknown() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_step.*Did you mean trainer\.max_steps"):
        load_config(["trainer.max_step=3"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["trainer.limit_val_batches=5"],
            r"trainer\.limit_val_batches=5: a validation is one batch.*valid_dataset\.lim",
        ),
        (["trainer.limit_val_batches=0.5"], r"trainer\.limit_val_batches=0\.5"),
        (["trainer.limit_val_batches=0", "mode=validate"], r"leaves nothing to do"),
        (["trainer.max_epochs=-1"], r"trainer\.max_epochs=-1: training would never end.*max_steps"),
        (["trainer.max_time=soon"], r"trainer\.max_time='soon': is no duration\. Write DD:HH:MM:SS"),
        (["trainer.max_time={years: 1}"], r"trainer\.max_time=.*is no duration"),
        (["trainer.max_steps=-2"], r"trainer\.max_steps=-2"),
        (["trainer.profiler=best"], r"trainer\.profiler='best'"),
    ],
)
def test_a_value_that_cannot_be_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(words)


@pytest.mark.parametrize("words", [["trainer.max_time=00:12:00:00"], ["trainer.max_time={hours: 2, minutes: 30}"]])
def test_durations_are_taken(words: list[str]) -> None:
    assert load_config([*words, "trainer.max_epochs=-1"]).trainer.max_time in (
        "00:12:00:00",
        {"hours": 2, "minutes": 30},
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "8 steps (2 epochs x 4)"),
        (["trainer.max_steps=3"], "8 steps (2 epochs x 4), at most 3 optimizer steps,"),
        (
            ["trainer.max_steps=3", "trainer.max_time=00:12:00:00"],
            "8 steps (2 epochs x 4), at most 3 optimizer steps and 00:12:00:00,",
        ),
        (["trainer.max_epochs=-1", "trainer.max_time=00:12:00:00"], "epochs of 4 steps, at most 00:12:00:00,"),
    ],
)
def test_the_length_of_training_in_words(words: list[str], told: str) -> None:
    config = load_config(["trainer.max_epochs=2", "train_dataset.batches_per_epoch=4", *words], check=False)
    assert length_in_words(config) == told
