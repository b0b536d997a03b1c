"""Whether a model and a layout go together."""

from __future__ import annotations

from typing import Any

from tau2_lightning.config.allocation import Allocation, AllocationError, Component, ParallelSpec
from tau2_lightning.errors import ConfigError, Violation

from .model import SPLITTABLE, can_exchange, can_split


def splits_layers(config: Any, spec: ParallelSpec) -> bool:
    """Whether layers are taken out of the model: for p and t, and for c where their structure is known."""
    return spec.p * spec.t > 1 or (spec.c > 1 and can_split(config, tensor=False))


def check_fits(model: Any, spec: ParallelSpec) -> None:
    """Raise ConfigError when ``model``, a transformers causal LM, cannot be laid out as ``spec`` says."""
    config = model.config
    if splits_layers(config, spec) and not can_split(config, tensor=spec.t > 1):
        problem = f"layers of {config.model_type!r} models cannot be split over p or t"
        remedy = f"Use d (and c where attention allows); p and t know {', '.join(SPLITTABLE)} without sliding windows"
        raise ConfigError([Violation("allocation_mode", str(spec), problem, remedy)])
    if spec.c > 1 and not splits_layers(config, spec) and not can_exchange(model):
        problem = f"c cannot cut sequences of {config.model_type!r} models: their attention is not the common one"
        raise ConfigError([Violation("allocation_mode", str(spec), problem, "Use d only")])
    try:
        Allocation(((Component("archon", spec),),)).check_model(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            num_experts=getattr(config, "num_experts", 0) or 0,
            model=config.model_type,
        )
    except AllocationError as error:
        raise ConfigError([Violation("allocation_mode", str(spec), error.problem, error.allowed)]) from error
