"""Rotary embeddings whose frequencies depend on the longest row of a batch in transformers.

A row's log-probs must not depend on the other rows, and must agree with those of the engine, which chooses frequencies
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def moves_with_length(config: Any) -> bool:
    """Whether frequencies of this (text) configuration change with every length: "dynamic" rope.

    transformers adapts them to the longest row; vLLM fixes them by the model's longest context. So log-probs would
    depend on the batch, and differ between engine and trainer.
    """
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer. `fix_frequencies` does not handle "longrope" by kind.
    by_kind = [each.get("rope_type") for each in found.values() if isinstance(each, Mapping)]
    return any("dynamic" in str(kind) for kind in (found.get("rope_type"), *by_kind)) or "longrope" in by_kind


def fix_frequencies(model: nn.Module, longest: int | None) -> None:
    """Make every rotary embedding of "longrope" use one set of factors for all rows, in place.

    These are the long factors if ``longest``, the largest number of tokens of a row, exceeds the positions of the
    original model, else the short ones. vLLM does the same with its ``max_model_len``. None: as many tokens as the
    model allows.
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
        rotary.rope_type = "fixed"  # transformers changes the frequencies of "longrope" at every forward pass
