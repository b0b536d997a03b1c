"""If engine and trainer disagree after a weight sync, it is repeated once; then a checkpoint and an error follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from tau2_lightning.algorithm import GRPO
from tau2_lightning.config.schema import OptimizerConfig
from tau2_lightning.errors import ParityError
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.parity import ParityReport
from tau2_lightning.strategy import ArchonStrategy
from tests.fake_service import FakeService, data_with, group, small_config
from tests.sections import section


class Disagreeing(FakeService):
    """An engine whose log-probs differ in the first ``times`` comparisons."""

    def __init__(self, *steps: Any, times: int) -> None:
        super().__init__(*steps)
        self.times = times

    def check_parity(self, guard: GuardRows, expected: Sequence[Sequence[float]]) -> ParityReport:
        if self.times:
            self.times -= 1
            raise ParityError("weights differ")
        return super().check_parity(guard, expected)


def fit(service: FakeService, folder: Path) -> tuple[L.Trainer, GRPOModule]:
    policy = build_tiny_policy(folder / "policy", ["check the line status. " * 30], vocab_size=512)
    config = small_config("train_dataset.batches_per_epoch=1")
    optimizer = section(OptimizerConfig, "actor.optimizer", lr=1e-3)
    module, data = GRPOModule(policy, GRPO(), optimizer), data_with(service, config, policy, GRPO(), folder)
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1"), accelerator="cpu", devices=1, max_epochs=1, logger=False,
        callbacks=[ModelCheckpoint(dirpath=folder / "checkpoints", save_top_k=0)],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        inference_mode=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module


def test_a_second_publication_can_repair_a_sync(tmp_path: Path) -> None:
    service = Disagreeing([group(0, [1.0, 0.0])], times=1)
    _, module = fit(service, tmp_path)
    assert service.published == [1, 1] and module.last_metrics["sync/logp_difference/p99"] == 0
    assert not (tmp_path / "checkpoints").exists()


def test_a_lasting_disagreement_saves_a_checkpoint_and_stops(tmp_path: Path) -> None:
    service = Disagreeing([group(0, [1.0, 0.0])], times=2)
    with pytest.raises(ParityError, match="weights differ"):
        fit(service, tmp_path)
    assert service.published == [1, 1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step1.ckpt"]


def test_a_step_in_agreement_publishes_once(tmp_path: Path) -> None:
    service = Disagreeing([group(0, [1.0, 0.0])], times=0)
    fit(service, tmp_path)
    assert service.published == [1]


def test_engines_on_the_trainers_gpus_sleep_during_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2_lightning.callbacks import weight_sync

    seen: list[str] = []

    class Sleeping(FakeService):
        def sleep(self) -> None:
            seen.append("sleep")

        def publish(self, version: int, buckets: Any) -> Any:
            seen.append(f"publish {version}")
            return super().publish(version, buckets)

    fit(Sleeping([group(0, [1.0, 0.0])]), tmp_path / "awake")
    assert seen == ["publish 1"]
    monkeypatch.setattr(weight_sync, "sleep_level", lambda config: 2)
    _, module = fit(Sleeping([group(0, [1.0, 0.0])]), tmp_path / "shared")
    assert seen[1:] == ["sleep", "publish 1"]
    assert module.policy is not None and all(parameter.grad is None for parameter in module.policy.parameters())
