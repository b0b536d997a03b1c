"""Fine-tuning computes as GRPO's trainer does: the same layout, the same ways to save memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.setup import build_strategy
from tau2_lightning.strategy.lean_adamw import LeanAdamW
from tau2_lightning.warm_start.fit import _strategy
from tau2_lightning.warm_start.module import SFTModule

FRUGAL = [
    "actor.path=FOLDER", "domain=mock", "allocation_mode=vllm:d1+archon:d2", "actor.lora.r=4",
    "actor.lora.base_dtype=bfloat16", "actor.precision=bf16", "actor.activation_offloading=true",
    "actor.activation_checkpointing=selective", "trainer.accelerator=cpu",
]  # fmt: skip


def test_a_given_model_is_laid_out_and_saves_memory_as_in_training() -> None:
    config = load_config([*FRUGAL, "warm_start.precision=bf16"], check=False)
    ours, training = _strategy(config), build_strategy(config)
    assert ours.spec == training.spec and ours.compute.options == training.compute.options
    assert ours.compute.options.activation_offloading and ours.compute.options.base_dtype == "bfloat16"


def test_weights_that_are_frozen_are_narrow_only_beside_bfloat16_products() -> None:
    config = load_config([*FRUGAL, "warm_start.precision=fp32"], check=False)
    wide = replace(build_strategy(config).compute.options, precision="fp32", base_dtype="float32")
    assert _strategy(config).compute.options == wide


def test_the_optimizer_keeps_its_moments_as_configured(tmp_path: Path) -> None:
    for kind, made in (("adam", torch.optim.AdamW), ("adam_8bit", LeanAdamW)):
        module = SFTModule(tmp_path, steps=1, learning_rate=1e-3, kind=kind)
        module.policy = torch.nn.Linear(2, 2)
        assert isinstance(module.configure_optimizers()[0][0], made)
