"""Rotary embeddings whose frequencies transformers chooses by the longest row of a batch.

A row's log-probs must not depend on the rows beside it, and must be those of the engine, which chooses once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def moves_with_length(config: Any) -> bool:
    """Whether frequencies of this (text) configuration change with every length: "dynamic" rope.

    transformers stretches them to the longest row; vLLM fixes them by the model's longest context. So neither rows nor
    engine and trainer would agree.
    """
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer; of the latter, `fix_frequencies` knows no "longrope".
    by_kind = [each.get("rope_type") for each in found.values() if isinstance(each, Mapping)]
    return any("dynamic" in str(kind) for kind in (found.get("rope_type"), *by_kind)) or "longrope" in by_kind


def fix_frequencies(model: nn.Module, longest: int | None) -> None:
    """Make every rotary embedding of "longrope" use one set of factors for all rows, in place.

    These are the long factors when ``longest``, the most tokens of a row, is more than the positions of the original
    model, else the short ones: what vLLM does with its ``max_model_len``. None: as many tokens as the model allows.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for module in model.modules():
        rotary: Any = module
        if getattr(rotary, "rope_type", None) != "longrope":
            continue
        config = rotary.config
        original: int = config.rope_parameters["original_max_position_embeddings"]
        most = config.max_position_embeddings if longest is None else longest
        frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](
            config, rotary.inv_freq.device, seq_len=original + 1 if most > original else None
        )
        rotary.inv_freq = frequencies
        rotary.rope_type = "fixed"  # transformers updates frequencies of types that it knows to move
