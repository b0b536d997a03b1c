"""Checks that a model fits a layout."""

from __future__ import annotations

from typing import Any

from tau2_lightning.config.allocation import Allocation, AllocationError, Component, ParallelSpec
from tau2_lightning.errors import ConfigError, Violation

from .families.registry import FAMILIES, family_of


def can_pack(config: Any) -> bool:
    """Whether rows of this model may be packed side by side: its family is known, and no layer slides a window."""
    return family_of(config) is not None and not _slides(config)


def splits_layers(config: Any, spec: ParallelSpec) -> bool:
    """Whether layers are taken out of the model: for p and t, and for c where the family allows it."""
    return spec.p * spec.t > 1 or (spec.c > 1 and _can_split(config, tensor=False))


def check_fits(model: Any, spec: ParallelSpec) -> None:
    """Raise ConfigError when ``model``, a transformers causal LM, cannot be laid out as ``spec`` says."""
    config, family = model.config, family_of(model.config)
    if splits_layers(config, spec) and not _can_split(config, tensor=spec.t > 1):
        problem = f"layers of {config.model_type!r} models cannot be split over p or t"
        known = ", ".join(name for name, each in FAMILIES.items() if each.tensor is not None)
        remedy = f"Use d (and c where attention allows); p and t know {known} without sliding windows"
        raise ConfigError([Violation("allocation_mode", str(spec), problem, remedy)])
    if spec.c > 1 and not splits_layers(config, spec) and not _can_exchange(model):
        problem = f"c cannot cut sequences of {config.model_type!r} models: their attention is not the common one"
        raise ConfigError([Violation("allocation_mode", str(spec), problem, "Use d only")])
    experts = family.experts.count(config) if family is not None and family.experts is not None else 0
    try:
        Allocation(((Component("archon", spec),),)).check_model(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            num_experts=experts,
            model=config.model_type,
        )
    except AllocationError as error:
        raise ConfigError([Violation("allocation_mode", str(spec), error.problem, error.allowed)]) from error


def _can_split(config: Any, *, tensor: bool) -> bool:
    """Whether layers may be taken out for p and c, and with ``tensor`` split over t too."""
    family = family_of(config)
    if family is None or _slides(config):
        return False
    return family.tensor is not None if tensor else family.layers_apart


def _can_exchange(model: Any) -> bool:
    """Whether c may cut the sequence of a whole model: its attention is transformers' interface and nothing on top."""
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    return bool(getattr(model, "_supports_attention_backend", False)) and not capped and not _slides(model.config)


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "sliding_window", None))
