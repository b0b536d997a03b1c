"""Checks of the strategy's options against the model and the machine, before an engine is started or weights read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tau2_lightning.config.allocation import Allocation, AllocationError
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.cluster import visible_gpus
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.policy.model_config import read_config
from tau2_lightning.policy.text_part import is_composite, text_config

from .families.registry import family_of
from .fitting import misfits, untrainable
from .layers import check_compiler
from .lora import AdapterPlan, LoRASettings, plan_adapters

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig


def replays_experts(policy: Path) -> bool:
    """Whether the model at ``policy`` has experts whose routers can use the engine's choice (`strategy.replay`)."""
    config = load_model_config(policy)
    family = family_of(config)
    return (
        family is not None
        and family.experts is not None
        and bool(family.experts.router and family.experts.count(config))
    )


def model_violations(config: RunConfig, policy: Path | str) -> Iterator[Violation]:
    """Reasons why the model at ``policy`` cannot be trained with these options. Reads its configuration only."""
    whole = read_config(policy)
    if (violation := untrainable(whole, str(policy))) is not None:
        yield violation
        return
    text = text_config(whole)
    try:
        training = Allocation.parse(config.allocation_mode).training_spec()
    except AllocationError:
        training = None  # a run without a trainer, or a layout that is refused by itself
    if training is not None:
        yield from misfits(text, training)
    family = family_of(text)
    if config.actor.handwritten_elementwise and (family is None or family.own_projections):
        problem = f"attention and norms of {text.model_type!r} models are not the common ones"
        yield Violation("actor.handwritten_elementwise", True, problem, "Set it to false")
    yield from _adapter_violations(config, whole, text)


def _adapter_violations(config: RunConfig, whole: Any, text: Any) -> Iterator[Violation]:
    lora = LoRASettings.of(config.actor.lora)
    if lora is None:
        return
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            plan = plan_adapters(AutoModelForCausalLM.from_config(text), lora)
    except ConfigError as error:
        yield from error.violations
        return
    if config.actor.lora.sync != "adapter":
        return
    remedy = "Set actor.lora.sync=merged"
    if is_composite(whole):
        problem = f"engines know the layers of a {whole.model_type!r} model by other names than its text part"
        yield Violation("actor.lora.sync", "adapter", problem, remedy)
    by_reason: dict[str, list[str]] = {}
    for name, reason in unserved_adapters(text, plan).items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        problem = f"the engine takes no adapter on {', '.join(names)} of {text.model_type!r} models: {reason}"
        yield Violation("actor.lora.sync", "adapter", problem, f"{remedy}, or name other layers in target_modules")


def unserved_adapters(config: Any, plan: AdapterPlan) -> dict[str, str]:
    """The layers of ``plan`` on which an engine takes no adapter, by the last part of their name, with the reasons."""
    family = family_of(config)
    refused = family.no_adapters if family is not None else {}
    return {name: refused[name] for name in sorted({name.rpartition(".")[2] for name in plan.layers} & set(refused))}


def check_options(config: RunConfig, policy: Path) -> None:
    """Raise ConfigError for `model_violations`, and when ``actor.compile`` has no compiler."""
    found = list(model_violations(config, policy))
    if found:
        raise ConfigError(found)
    if config.actor.compile:
        check_compiler(torch.device("cuda" if visible_gpus(config) else "cpu"))
