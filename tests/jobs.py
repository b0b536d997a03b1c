"""The main job with real files, Trainer and policy, and a service that has no engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.run.compose import load_config
from tests.fake_service import FakeService, group

Job = Callable[..., FakeService]


def small_policy(factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


def run_job(policy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> FakeService:
    """Run the main job in ``folder``/e/t; returns the service that replaced the engine. It gives two batches."""
    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)
    service = FakeService([group(0, [1.0, 0.0, 0.0, 1.0])], [group(1, [0.0, 1.0, 0.0, 1.0])])
    monkeypatch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: service)
    config = load_config([*own_words(policy, folder), *words], check=False)
    assert train.run(config) == 0
    return service


def own_words(policy: Path, folder: Path) -> list[str]:
    """The words of a job in ``folder``/e/t with the policy at ``policy``."""
    return [
        f"actor.path={policy}", "actor=tiny", "actor.ppo_n_minibatches=1", "logger=csv", "gconfig.n_samples=4",
        "train_dataset.batch_size=1", "trainer.progress=off", "trainer.accelerator=cpu", f"output_dir={folder}",
        "experiment_name=e", "trial_name=t",
    ]  # fmt: skip
