"""Training while episodes continue, with the real parts: telecom dialogues, vLLM, weight syncs during requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
import pytest

from tau2_lightning.batch.batch import Batch
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.run import setup as setup_run
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tests.e2e.reference_models import ReferenceModels

pytestmark = pytest.mark.e2e

STEPS = 3


class Record(L.Callback):
    """Every batch that was trained, and the metrics of its step."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)
        self.metrics.append(pl_module.last_metrics)  # not a copy: the sync that follows adds to it


@pytest.fixture
def train(engine_pool: EnginePool, reference: ReferenceModels, tmp_path: Path) -> Any:
    """Trains the reference policy for ``STEPS`` steps on the session's engine; returns the record."""

    def run(*overrides: str) -> Record:
        words = [
            f"actor.path={reference.folders['A']}", "actor.dtype=float32", "actor.precision=fp32",
            "actor.activation_checkpointing=none", "actor.optimizer.lr=1e-3", "actor.optimizer.warmup_steps=0",
            f"rollout.engine_urls=[{engine_pool.members[0].client.url}]",
            f"rollout.engine_api_key={engine_pool.settings.api_key}",
            "+rollout.workflow._target_=tests.e2e.slow_agent.SlowAgent",
            "+rollout.workflow.low=0.0", "+rollout.workflow.high=0.1",
            "domain=telecom", "econfig.user=scripted", "econfig.max_steps=14", "econfig.policy=none",
            "gconfig.max_tokens=4000", "gconfig.max_new_tokens=24", "gconfig.n_samples=4",
            "train_dataset.batch_size=2", f"train_dataset.batches_per_epoch={STEPS}",
            "trainer.max_epochs=1", "trainer.progress=off", "trainer.accelerator=cpu", "logger=csv",
            "rollout.collect_timeout=120", f"output_dir={tmp_path}", *overrides,
        ]  # fmt: skip
        config = load_config(words)
        folder, record, policy = RunFolder.create(config), Record(), Path(str(config.actor.path))
        algorithm = instantiate_algorithm(config)
        module = GRPOModule(policy, algorithm, config.actor.optimizer, temperature=config.gconfig.temperature)
        trainer = setup_run.build_trainer(config, folder)
        cast("Any", trainer).callbacks.append(record)
        with Tau2DataModule(config, policy, algorithm, run_dir=folder.root) as data:
            trainer.fit(module, data)
        return record

    return run


def test_asynchronous_steps_keep_the_bound_and_go_on_across_updates(train: Any) -> None:
    # A turn is slower than a training step, so that the third batch is in progress when the second's weights arrive.
    slow = ("++rollout.workflow.low=0.5", "++rollout.workflow.high=1.2")
    steps = 4
    record = train("rollout.max_head_offpolicyness=1", f"train_dataset.batches_per_epoch={steps}", *slow)
    assert [batch.version for batch in record.batches] == list(range(steps))
    across = []
    for batch, metrics in zip(record.batches, record.metrics, strict=True):
        mixed = 0
        for row in batch.rows:
            versions = row.versions[row.loss_mask]
            assert batch.version - 1 <= versions.min() and versions.max() <= batch.version
            assert (versions[1:] >= versions[:-1]).all(), "a later token of an older policy"
            mixed += versions.min() < versions.max()
        assert metrics["batch/staleness/max"] <= 1 and metrics["off_policy/dropped"] == 0
        assert metrics["sync/logp_difference/max"] < 1e-3  # the guard scored while episodes were in progress
        across += [metrics] * bool(mixed)
    assert across, "no episode went on across an update"
    assert any(metrics["queue/running"] + metrics["queue/ready"] > 0 for metrics in record.metrics)
    for metrics in across:
        assert metrics["off_policy/max"] >= 1
        # Across an update the policies differ; within one version sampler and trainer agree.
        assert metrics["off_policy/lag0/logp_difference"] < 1e-3 < metrics["off_policy/lag1/logp_difference"]


def test_on_policy_the_first_ratio_is_one_and_every_correction_does_nothing(train: Any) -> None:
    corrected = (
        "algorithm.proximal=recompute", "algorithm.importance_sampling=mask", "algorithm.rejection=token",
        "algorithm.rejection_lower=0.5", "algorithm.rejection_upper=2.0",
    )  # fmt: skip
    for overrides in ((), corrected):
        record = train("train_dataset.batches_per_epoch=2", *overrides)
        for batch, metrics in zip(record.batches, record.metrics, strict=True):
            assert all((row.versions[row.loss_mask] == batch.version).all() for row in batch.rows)
            assert abs(metrics["ratio/mean"] - 1) < 1e-4 and abs(metrics["ratio/max"] - 1) < 1e-4
            assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
            assert abs(metrics["sampling/importance_sampling_ratio/max"] - 1) < 1e-4
            assert metrics["sampling/importance_sampling_ratio/capped"] == 0 and metrics["off_policy/max"] == 0
            assert metrics.get("off_policy/rejected", 0.0) == 0
            assert metrics["optim/grad_norm"] > 0, "nothing was learnt, so the test shows nothing"
