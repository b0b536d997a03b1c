"""Runs that differ in nothing but their seed are one variant."""

from __future__ import annotations

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.variant import settings, variant


def of(*words: str) -> str:
    return variant(load_config(["domain=mock", "experiment_name=e", *words], check=False))


def test_seeds_names_and_what_is_shown_make_no_other_variant() -> None:
    first = of("seed=1", "trial_name=a")
    assert first.startswith("e-") and first == of("seed=2", "trial_name=b", "trainer.progress=off", "logger=csv")


def test_every_other_setting_makes_another_variant() -> None:
    found = {of(), of("gconfig.n_samples=4"), of("actor.optimizer.lr=1e-3"), of("algorithm=rloo"), of("domain=retail")}
    assert len(found) == 5


def test_what_is_left_out_is_so_by_whole_names() -> None:
    stored = {"seed": 1, "seeds": 2, "logger": {"wandb": {"project": "p"}}, "trainer": {"progress": "off", "max": 1}}
    assert settings(stored) == {"seeds": 2, "trainer.max": 1}
