"""GRPOModule with LoRA: only adapters learn, the reference is the base model, adapters are what is published."""

from __future__ import annotations

from collections.abc import Callable
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
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.lora import LoRASettings
from tests.sections import section
from tests.test_module import Given, group


class Adapted(Given):
    """Takes adapters, and keeps what came of them."""

    def __init__(self, batches: list[Batch], folder: Path) -> None:
        super().__init__(batches)
        self.takes_adapters, self.folder = True, folder

    def publish(self, version: int, buckets: Any) -> None:
        raise AssertionError("full weights were published")

    def publish_adapter(self, version: int, save: Callable[[Path], None]) -> None:
        self.version = version
        save(self.folder / f"v{version}")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("policy"), ["check the line status. " * 30], vocab_size=512)


def test_the_reference_stays_the_base_model_and_adapters_travel(policy: Path, tmp_path: Path) -> None:
    algorithm = GRPO(kl_ctl=0.1)
    groups = [[group(number, [1.0, 0.0, 0.5])] for number in range(3)]
    given = Adapted([Batch.from_groups(g, algorithm, version=v) for v, g in enumerate(groups)], tmp_path)
    steady = {"warmup_steps": 0, "final_lr_fraction": 1.0}
    module = GRPOModule(
        policy, algorithm, section(OptimizerConfig, "actor.optimizer", lr=1e-2, weight_decay=0.1, **steady)
    )
    trainer = L.Trainer(
        strategy=ArchonStrategy("d1p1t1", lora=LoRASettings(4, 8.0)), accelerator="cpu", devices=1, max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, inference_mode=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, given)
    assert [path.name for path in sorted(tmp_path.glob("v*"))] == ["v1", "v2", "v3"]

    start = ArchonStrategy("d1p1t1")
    start.parallelize(policy)
    mbs = given.batches[0].microbatches(4096)
    want = start.token_outputs(mbs)[0].logprobs
    with module._reference_policy():
        reference = module.archon.token_outputs(mbs)[0].logprobs
    assert torch.equal(reference, want)
    assert float((module.archon.token_outputs(mbs)[0].logprobs - want).abs().max()) > 1e-3
    assert not module._reference  # no second copy of the model
