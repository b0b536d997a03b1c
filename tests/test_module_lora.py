"""GRPOModule with LoRA: only adapters learn, the reference is the base model, adapters are what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.schema import OptimizerConfig
from tau2_lightning.module import GRPOModule
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.rollout.weights.sync_round import SyncReport
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.lora import LoRASettings
from tests.fake_service import FakeService, data_with, group, small_config
from tests.sections import section


class Adapted(FakeService):
    """An engine that takes adapters alone."""

    def publish(self, version: int, tensors: Any) -> SyncReport:
        raise AssertionError("full weights were published")


# A steady learning rate, so that weights move from the first step on.
STEADY: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-5, "warmup_steps": 0, "final_lr_fraction": 1.0}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


def test_the_reference_stays_the_base_model_and_adapters_travel(policy: Path, tmp_path: Path) -> None:
    algorithm = GRPO(kl_ctl=0.1)
    groups = [[group(number, [1.0, 0.0, 0.5])] for number in range(3)]
    service = Adapted(*groups)
    config = small_config("train_dataset.batches_per_epoch=3", "actor.lora.r=4")
    given = data_with(service, config, policy, algorithm, tmp_path)
    optimizer = section(OptimizerConfig, "actor.optimizer", **STEADY)
    module = GRPOModule(policy, algorithm, optimizer)
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1", lora=LoRASettings(4, 8.0)), accelerator="cpu", devices=1, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, inference_mode=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, given)
    assert service.published == [1, 2, 3]
    assert [path.name for path in sorted((tmp_path / "adapter").iterdir())] == ["v3"]
    assert list((tmp_path / "adapter" / "v3").glob("adapter_model*"))

    start = ArchonStrategy("d1p1t1")
    start.parallelize(policy)
    mbs = Batch.from_groups(groups[0], algorithm, version=0).microbatches(4096)
    want = start.token_outputs(mbs)[0].logprobs
    assert module.reference is not None
    with module.reference.active():
        reference = module.archon.token_outputs(mbs)[0].logprobs
    assert torch.equal(reference, want)
    assert float((module.archon.token_outputs(mbs)[0].logprobs - want).abs().max()) > 1e-3
    assert not module.reference._weights  # no second copy of the model
