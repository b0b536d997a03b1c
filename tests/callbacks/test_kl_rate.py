"""The learning rate follows the measured KL divergence of a batch's update; the measurement is the definition's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tau2_lightning.algorithm import GRPO
from tau2_lightning.callbacks.kl_rate import LEAST, KLRate, adapted, chosen
from tau2_lightning.callbacks.seams import module_of
from tau2_lightning.config.schema import OptimizerConfig
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.strategy import ArchonStrategy
from tests.fake_service import FakeService, data_with, group, small_config
from tests.sections import section

STEADY: dict[str, Any] = {"lr": 1e-3, "warmup_steps": 0, "final_lr_fraction": 1.0}
STEPS = [[group(0, [1.0, 0.0, 0.0])], [group(1, [0.0, 1.0, 0.0])], [group(2, [0.0, 0.0, 1.0])]]


class Watching(Callback):
    """The logged learning rates and the measured values."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.kl: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        metrics = module_of(pl_module).last_metrics
        self.rates.append(metrics["optim/lr"])
        self.kl.append(metrics.get("optim/step_kl", float("nan")))


def fit(folder: Path, control: KLRate, *steps: Any, **settings: Any) -> tuple[Watching, L.Trainer, GRPOModule]:
    policy = build_tiny_policy(folder / "policy", ["check the line status. " * 30], vocab_size=512)
    config, algorithm = small_config(f"train_dataset.batches_per_epoch={len(steps)}"), GRPO()
    given = data_with(FakeService(*steps), config, policy, algorithm, folder)
    module = GRPOModule(policy, algorithm, section(OptimizerConfig, "actor.optimizer", **STEADY | settings))
    seen = Watching()
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1"), accelerator="cpu", devices=1, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        inference_mode=False, use_distributed_sampler=False, limit_val_batches=0, callbacks=[control, seen],
    )  # fmt: skip
    trainer.fit(module, given)
    return seen, trainer, module


def test_the_rule() -> None:
    assert adapted(1.0, 0.021, 0.01) == pytest.approx(1 / 1.5)
    assert adapted(0.5, 0.02, 0.01) == 0.5 == adapted(0.5, 0.005, 0.01)
    assert adapted(0.5, 0.0049, 0.01) == 0.75
    assert adapted(0.9, 0.0, 0.01) == 1.0, "never above the schedule"
    assert adapted(LEAST, 9.0, 0.01) == LEAST
    assert adapted(1.0, float("nan"), 0.01) == adapted(1.0, float("inf"), 0.01) == pytest.approx(1 / 1.5)


def test_steps_that_change_the_policy_too_much_lower_the_rate(tmp_path: Path) -> None:
    seen, _, module = fit(tmp_path, KLRate(1e-9), *STEPS)
    assert seen.rates == pytest.approx([1e-3, 1e-3 / 1.5, 1e-3 / 1.5**2])
    assert all(kl > 2e-9 for kl in seen.kl)
    assert module.last_metrics["optim/lr_factor"] == pytest.approx(1.5**-3)


def test_steps_within_the_target_keep_the_planned_rate(tmp_path: Path) -> None:
    seen, _, _ = fit(tmp_path, KLRate(1e9), *STEPS, final_lr_fraction=0.5)
    planned, _, _ = fit(tmp_path / "planned", KLRate(None), *STEPS, final_lr_fraction=0.5)
    assert seen.rates == pytest.approx(planned.rates) and seen.rates[-1] == pytest.approx(5e-4)


def test_without_a_target_nothing_is_measured(tmp_path: Path) -> None:
    seen, _, module = fit(tmp_path, KLRate(None), *STEPS)
    assert seen.rates == pytest.approx([1e-3] * 3) and "optim/step_kl" not in module.last_metrics


def test_a_batch_without_a_step_changes_no_rate(tmp_path: Path) -> None:
    control = KLRate(1e-9)
    fit(tmp_path, control, STEPS[0], [group(1, [0.0] * 4)])
    assert control.factor == pytest.approx(1 / 1.5)


def test_the_measured_value_is_the_estimator_on_all_trained_tokens(tmp_path: Path) -> None:
    """Against a plain loop over tokens with the transformers model."""
    from transformers import AutoModelForCausalLM

    kept: list[Any] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, _: int) -> None:
            kept.append((batch, {name: value.clone() for name, value in pl_module.policy.state_dict().items()}))

    control = KLRate(1.0, rows=100)
    policy = build_tiny_policy(tmp_path / "p", ["check the line status. " * 30], vocab_size=512)
    config, algorithm = small_config("train_dataset.batches_per_epoch=1"), GRPO()
    module = GRPOModule(policy, algorithm, section(OptimizerConfig, "actor.optimizer", **STEADY | {"lr": 1e-2}))
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1"), accelerator="cpu", devices=1, max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        inference_mode=False, use_distributed_sampler=False, limit_val_batches=0, callbacks=[control, Keep()],
    )  # fmt: skip
    trainer.fit(module, data_with(FakeService(STEPS[0]), config, policy, algorithm, tmp_path))
    batch, weights = kept[0]
    model = AutoModelForCausalLM.from_pretrained(policy, torch_dtype=torch.float32)
    model.load_state_dict({name: weights[name] for name in model.state_dict() if name in weights}, strict=False)
    terms = []
    for row in batch.rows:
        tokens = torch.tensor(batch.tokens(row), dtype=torch.long)[None]
        with torch.no_grad():
            logprobs = model(tokens).logits[0].double().log_softmax(-1)
        for t in range(len(row) - 1):
            if row.loss_mask[t]:
                d = float(logprobs[t, tokens[0, t + 1]]) - float(row.behaviour_logprobs[t])
                terms.append(torch.tensor(d).double().exp().item() - 1 - d)
    assert module.last_metrics["optim/step_kl"] == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_rows_are_the_same_on_every_rank_and_others_for_each_batch(tmp_path: Path) -> None:
    from tau2_lightning.batch.batch import Batch

    batch = Batch.from_groups([group(n, [1.0, 0.0, 0.0]) for n in range(6)], GRPO(), version=0)
    ids = [[row.row_id for row in chosen(batch, 4, seed).rows] for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 4


def test_the_factor_is_in_the_checkpoint() -> None:
    control, resumed = KLRate(0.01), KLRate(0.01)
    control.factor = 0.25
    resumed.load_state_dict(control.state_dict())
    assert resumed.factor == 0.25
