"""A Trainer of a user's own with our module and datamodule: what does not fit is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tau2_lightning.algorithm import GRPO
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.errors import ConfigError
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.strategy import ArchonStrategy
from tests.fake_service import FakeService, data_with, group, small_config

Joined = tuple[GRPOModule, Tau2DataModule, FakeService]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


@pytest.fixture
def joined(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Joined]:
    """A module and a datamodule of two batches an epoch; ``words`` are the datamodule's alone."""
    monkeypatch.chdir(tmp_path)  # where a Trainer that is told nothing writes

    def make(*words: str, algorithm: Any = None, **module: Any) -> Joined:
        service = FakeService([group(0, [1.0, 0.0, 0.0])])
        small = ["train_dataset.batches_per_epoch=2", "valid_dataset.limit=2", "actor.optimizer.warmup_steps=0"]
        config = small_config(*small, "actor.ppo_n_minibatches=1", *words)
        ours = GRPO()
        data = data_with(service, config, policy, ours, tmp_path / "run")
        given = {"temperature": 1.0, **module}
        made = GRPOModule(given.pop("policy", policy), algorithm or ours, config.actor.optimizer, **given)
        return made, data, service

    return make


def plain(**more: Any) -> L.Trainer:
    """A Trainer as a newcomer makes it: Lightning's defaults, but for the strategy."""
    return L.Trainer(**{"strategy": ArchonStrategy("d1"), "accelerator": "cpu", "max_epochs": 1, **more})


def test_a_trainer_with_lightnings_defaults_trains_validates_saves_and_resumes(
    joined: Callable[..., Joined], tmp_path: Path
) -> None:
    module, data, service = joined()
    trainer = plain(logger=CSVLogger(tmp_path, name="mine"), log_every_n_steps=1)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    assert service.published == [1, 2] and module.weights_version == 2
    assert service.evaluated == 2, "before, and after the epoch: the sanity check plays nothing"
    assert float(trainer.callback_metrics["eval/mock/test/pass^1"]) == 1.0
    (saved,) = tmp_path.rglob("*.ckpt")  # of Lightning's own ModelCheckpoint
    again, more, other = joined()
    trainer = plain(max_epochs=2, logger=False)
    trainer.fit(again, datamodule=more, ckpt_path=str(saved))
    assert other.published == [2, 3, 4] and again.weights_version == 4
    module, data, service = joined()
    plain(logger=False).validate(module, datamodule=data, ckpt_path=str(saved), verbose=False)
    assert service.published == [2], "the engine gets the checkpoint's weights"


def test_the_best_checkpoint_by_a_score_is_lightnings_to_keep(joined: Callable[..., Joined], tmp_path: Path) -> None:
    module, data, _ = joined()
    best = ModelCheckpoint(tmp_path / "best", "e{epoch}", "eval/mock/test/pass^1", mode="max", save_weights_only=True)
    plain(callbacks=[best], logger=False).fit(module, datamodule=data)
    assert float(best.best_model_score or 0) == 1.0 and Path(best.best_model_path).is_dir()


def test_all_that_does_not_fit_is_named_at_once_and_nothing_is_started(joined: Callable[..., Joined]) -> None:
    module, data, service = joined("gconfig.temperature=0.7", algorithm=GRPO(kl_ctl=0.1), policy="elsewhere")
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, accumulate_grad_batches=2, gradient_clip_val=1.0
    )
    with pytest.raises(ConfigError) as error:
        trainer.fit(module, datamodule=data)
    told = [(violation.key, violation.value) for violation in error.value.violations]
    assert told[:3] == [
        ("Trainer(strategy)", "SingleDeviceStrategy"), ("Trainer(accumulate_grad_batches)", 2),
        ("Trainer(gradient_clip_val)", 1.0),
    ]  # fmt: skip
    assert [key for key, _ in told[3:]] == ["GRPOModule(policy)", "GRPOModule(algorithm)", "GRPOModule(temperature)"]
    assert "gradient_clipping" in str(error.value) and "GRPOModule.of" in str(error.value)
    assert data._sampler is None and not service.published, "before the datamodule has loaded anything"


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_the_datamodule_is_asked_for(joined: Callable[..., Joined], stage: str) -> None:
    module, _, _ = joined()
    trainer = plain(logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r"datamodule: .*datamodule=Tau2DataModule"):
        getattr(trainer, stage)(module)


def test_the_datamodule_refuses_another_strategy_by_itself(joined: Callable[..., Joined]) -> None:
    class Other(L.LightningModule):
        def training_step(self, batch: Any, index: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    _, data, _ = joined()
    with pytest.raises(ConfigError, match="'SingleDeviceStrategy'"):
        L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit(Other(), datamodule=data)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_precision_of_the_trainers_is_refused_when_it_is_made(precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"Trainer\(precision\)='{precision}'.*ArchonStrategy\(\.\.\., precision="):
        plain(precision=precision, logger=False)


def test_without_a_trainer_the_datamodule_has_its_tasks_and_plays_nothing(joined: Callable[..., Joined]) -> None:
    _, data, _ = joined()
    assert data.tasks("train")
    data.setup("fit")
    assert next(data.sampler) in data.tasks("train")
    with pytest.raises(RuntimeError, match=r"trainer\.fit\(module, datamodule=data\)"):
        next(iter(data.train_dataloader()))
