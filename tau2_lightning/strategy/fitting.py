"""Decides which models can be trained, and in which layouts, from their configurations. No weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tau2_lightning.config.allocation import Allocation, AllocationError, Component, ParallelSpec
from tau2_lightning.config.model_sizes import ModelSizes
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.model_config import unbuildable
from tau2_lightning.policy.text_part import is_composite, text_config

from .families.registry import FAMILIES, family_of
from .rotary import moves_with_length

LETTERS = "dptce"
#: Classes without the head of a language model: classifiers, reward models, and the layers alone.
_NO_LANGUAGE_MODEL = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|Ranking)$|(?<!LMHead)Model$"
)


def untrainable(config: Any, path: str) -> Violation | None:
    """Why the model at ``path`` with this configuration (whole, as in ``config.json``) cannot be trained, or None."""
    reason = refusal(config) or unbuildable(text_config(config))
    if reason is None:
        return None
    problem = f"a {config.model_type!r} model cannot be trained: {reason}"
    return Violation("actor.path", path, problem, "Give another model")


def refusal(config: Any) -> str | None:
    """One line that says why models of this configuration (whole, as in ``config.json``) cannot be trained, or None."""
    text = text_config(config)
    for key in ("quantization_config", "compression_config"):
        if quantised := getattr(config, key, None) or getattr(text, key, None):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
            return (
                f"its weights are quantised ({method or key}), so an engine that serves them takes no trained weights"
            )
    named = next(iter(getattr(config, "architectures", None) or [""]))
    if _NO_LANGUAGE_MODEL.search(str(named)):
        return f"config.json calls it {named} (architectures), which an engine does not serve as a language model"
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()) and not getattr(text, "sliding_window", None):
        return "its layer_types name sliding_attention, and its sliding_window is not set"
    if getattr(text, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, and agents need a causal language model"
    if is_composite(config) and family_of(text) is None:
        return f"the text model inside it ({text.model_type}) is none of {', '.join(FAMILIES)}"
    if moves_with_length(text):
        return "its rotary embedding depends on the length of a batch (dynamic), so a row's log-probs would too"
    family = family_of(text)
    return None if family is None else family.refuses(text)


def why_not(config: Any, letter: str) -> str | None:
    """One line that says why ``letter`` of an allocation (d, p, t, c or e) is not provided for models of this (text)
    configuration, or None."""
    family = family_of(config)
    if letter == "d":
        return None
    if family is None:
        if letter == "c":
            return None if _can_exchange(config) else "its attention is not the common one"
        return "its family is not one whose layers are taken apart"
    if letter in family.reasons:
        return family.reasons[letter]
    if letter == "e":
        return None if family.experts is not None and family.experts.count(config) else "it has no experts"
    provided = {"p": family.layers_apart, "c": family.layers_apart, "t": family.tensor is not None}[letter]
    return None if provided else f"its layers are not split over {letter}"


def why_not_packed(config: Any) -> str | None:
    """One line that says why rows of this model are computed with their padding; None where they can be packed."""
    if family_of(config) is not None:
        return None
    return "its family is not one whose attention is known to keep packed rows apart"


def can_pack(config: Any) -> bool:
    """Whether rows of this model may be packed side by side."""
    return why_not_packed(config) is None


def why_not_shared(config: Any) -> str | None:
    """One line that says why tokens that rows share are computed again for each row; None if once suffices."""
    family = family_of(config)
    if family is None:
        return why_not_packed(config)
    if family.changes_layers:
        return "its layers connect positions by more than attention"
    if getattr(config, "sliding_window", None) is not None:
        return "its attention has a window"
    return None


def can_share(config: Any) -> bool:
    """Whether tokens that packed rows of this model share may be computed once."""
    return why_not_shared(config) is None


def splits_layers(config: Any, spec: ParallelSpec) -> bool:
    """Whether layers are taken out of the model: for p and t, and for c if the family is known."""
    return spec.p * spec.t > 1 or (spec.c > 1 and family_of(config) is not None)


def misfits(config: Any, spec: ParallelSpec) -> Iterator[Violation]:
    """Reasons why a model of this (text) configuration cannot be laid out as ``spec`` says."""
    sizes = {"p": spec.p, "t": spec.t, "c": spec.c, "e": spec.e}
    wrong = {letter: reason for letter, size in sizes.items() if size > 1 and (reason := why_not(config, letter))}
    for letter, reason in wrong.items():
        able = ", ".join(each for each in LETTERS if why_not(config, each) is None)
        problem = f"{letter} cannot lay out {config.model_type!r} models: {reason}"
        yield Violation("allocation_mode", str(spec), problem, f"Use {able}" + (" only" if able == "d" else ""))
    if wrong:
        return
    try:
        Allocation(((Component("archon", spec),),)).check_model(sizes_of(config, config.model_type))
    except AllocationError as error:
        yield Violation("allocation_mode", str(spec), error.problem, error.allowed)


def sizes_of(config: Any, name: str) -> ModelSizes:
    """The sizes that a layout must fit, of a model of this (text) configuration; ``name`` is for messages."""
    family, heads = family_of(config), getattr(config, "num_attention_heads", None) or 1  # Mamba has none
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    spread = family.experts if family is not None else None
    experts = spread.count(config) if spread is not None else getattr(config, "num_experts", 0) or 0
    return ModelSizes(config.num_hidden_layers, heads, kv_heads, experts, name)


def check_fits(config: Any, spec: ParallelSpec) -> None:
    """Raise ConfigError when a model of this (text) configuration cannot be laid out as ``spec`` says."""
    found = list(misfits(config, spec))
    if found:
        raise ConfigError(found)


def _can_exchange(config: Any) -> bool:
    """Whether c may split the sequence of a whole model: it uses transformers' attention interface and nothing else
    that depends on positions."""
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM._model_mapping.get(type(config), None)
    made = made[0] if isinstance(made, tuple | list) else made
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return bool(getattr(made, "_supports_attention_backend", False)) and not capped and _sees_all(config)


def _sees_all(config: Any) -> bool:
    """Whether every layer attends to all tokens before one: no sliding windows, no chunks, no linear attention."""
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)
