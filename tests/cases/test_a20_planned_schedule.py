"""A20: the learning rate follows the planned optimizer steps, also where one is left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tau2_lightning.algorithm import GRPO, ClipCov, PolicyGradient
from tau2_lightning.config.schema import OptimizerConfig
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.learning_rate import lr_factor
from tau2_lightning.trajectory import Group
from tests.fake_service import FakeService, data_with, group, small_config
from tests.sections import section

RATE = 1e-3
FALLING: dict[str, Any] = {"lr": RATE, "warmup_steps": 0, "final_lr_fraction": 0.0}
SIGNAL, FAILED = [group(0, [1.0, 0.0, 1.0])], [group(1, [0.0] * 3)]


class Rates(L.Callback):
    """Records the learning rate of every optimizer step; saves a checkpoint after the first epoch to ``save``."""

    def __init__(self, save: Path | None = None) -> None:
        self.made: list[float] = []
        self.after: list[int] = []
        self.save = save

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def note(optimizer: Any, *_: Any) -> None:
            self.made.append(optimizer.param_groups[0]["lr"])

        trainer.optimizers[0].register_step_pre_hook(note)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        schedule: Any = pl_module.lr_schedulers()
        self.after.append(schedule.last_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.save is not None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.save)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


def fit(
    policy: Path, folder: Path, batches: Sequence[list[Group]], n_minibatches: int = 1, epochs: int = 1,
    resume: Path | None = None, save: Path | None = None, algorithm: PolicyGradient | None = None,
) -> Rates:  # fmt: skip
    algorithm, rates = algorithm or GRPO(), Rates(save)
    per_epoch = len(batches) // (1 if resume else epochs)
    config = small_config(f"train_dataset.batches_per_epoch={per_epoch}")
    module = GRPOModule(
        policy, algorithm, section(OptimizerConfig, "actor.optimizer", **FALLING), n_minibatches=n_minibatches
    )
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1"), accelerator="cpu", devices=1, max_epochs=epochs, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        inference_mode=False, use_distributed_sampler=False, limit_val_batches=0, callbacks=[rates],
    )  # fmt: skip
    data = data_with(FakeService(*batches), config, policy, algorithm, folder)
    trainer.fit(module, data, ckpt_path=str(resume) if resume else None)
    return rates


def planned_rates(steps: Sequence[int], total: int) -> list[float]:
    return [RATE * lr_factor(step, total=total, warmup=0, final=0.0) for step in steps]


def test_a_batch_without_signal_between_two_with_moves_the_schedule(policy: Path, tmp_path: Path) -> None:
    rates = fit(policy, tmp_path, [SIGNAL, FAILED, SIGNAL, SIGNAL])
    assert rates.made == pytest.approx(planned_rates([0, 2, 3], 4)) and rates.after == [1, 2, 3, 4]
    control = fit(policy, tmp_path, [SIGNAL] * 4)
    assert control.made == pytest.approx(planned_rates([0, 1, 2, 3], 4))
    assert rates.made[-1] == control.made[-1] == 0.0, "the rate must be at its final value when training ends"


@pytest.mark.parametrize("algorithm", [GRPO(), ClipCov(proximal="recompute")], ids=lambda one: type(one).__name__)
def test_a_minibatch_without_signal_moves_the_schedule_within_a_batch(
    policy: Path, tmp_path: Path, algorithm: PolicyGradient
) -> None:
    mixed = [group(0, [1.0, 0.0]), group(1, [0.0] * 4)]  # six episodes over three steps: some have no signal
    rates = fit(policy, tmp_path, [mixed, SIGNAL], n_minibatches=3, algorithm=algorithm)
    assert rates.after == [3, 6]
    assert 1 <= len(rates.made[:-3]) < 3, "the first batch has a minibatch without signal"
    assert set(rates.made[:-3]) <= set(planned_rates([0, 1, 2], 6))
    assert rates.made[-3:] == pytest.approx(planned_rates([3, 4, 5], 6))


def test_a_batch_with_fewer_episodes_than_minibatches_or_none_moves_the_schedule(policy: Path, tmp_path: Path) -> None:
    rates = fit(policy, tmp_path, [[group(0, [1.0, 0.0])], [], SIGNAL], n_minibatches=3)
    assert rates.after == [3, 6, 9]
    assert rates.made == pytest.approx(planned_rates([0, 1, 6, 7, 8], 9))


def test_a_resumed_run_goes_on_where_the_plan_is(policy: Path, tmp_path: Path) -> None:
    batches, file = [SIGNAL, FAILED, SIGNAL, SIGNAL], tmp_path / "after2.ckpt"
    whole = fit(policy, tmp_path, batches, epochs=2, save=file)
    rest = fit(policy, tmp_path, batches[2:], epochs=2, resume=file)
    assert rest.after == [3, 4] and rest.made == whole.made[-2:] == pytest.approx(planned_rates([2, 3], 4))
