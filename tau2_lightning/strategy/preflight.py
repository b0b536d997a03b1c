"""Checks of the strategy's options against the model and the machine, before an engine is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tau2_lightning.launch.cluster import visible_gpus
from tau2_lightning.policy.loading import load_model_config

from .families.registry import family_of
from .layers import check_compiler
from .lora import LoRASettings, plan_adapters

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig


def replays_experts(policy: Path) -> bool:
    """Whether the model at ``policy`` has experts, and its routers can take the engine's choice (`strategy.replay`)."""
    config = load_model_config(policy)
    family = family_of(config)
    return (
        family is not None
        and family.experts is not None
        and bool(family.experts.router and family.experts.count(config))
    )


def check_options(config: RunConfig, policy: Path) -> None:
    """Raise ConfigError when ``actor.lora`` names layers ``policy`` lacks, or ``actor.compile`` has no compiler."""
    lora = LoRASettings.of(config.actor.lora)
    if lora is not None:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            plan_adapters(AutoModelForCausalLM.from_config(load_model_config(policy)), lora)
    if config.actor.compile:
        check_compiler(torch.device("cuda" if visible_gpus(config) else "cpu"))
