"""A run that validates on tasks that it trains on says so."""

from __future__ import annotations

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.notices import notices


def told(*words: str) -> list[str]:
    return [one for one in notices(load_config(list(words), check=False)) if "trained on" in one]


def test_shared_tasks_are_counted() -> None:
    (one,) = told("domain=retail", "econfig.user=scripted", "train_dataset.split=base")
    assert one.startswith("40 of the 40 tasks of retail in the validated split `test`")


def test_other_tasks_no_validation_and_no_training_say_nothing() -> None:
    assert told() == []
    assert told("train_dataset.split=test", "mode=validate") == []
    assert told("train_dataset.split=test", "trainer.limit_val_batches=0") == []
