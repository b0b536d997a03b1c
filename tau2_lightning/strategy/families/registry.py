"""The families the strategy knows, by the ``model_type`` of their configuration. A new family adds one line here."""

from __future__ import annotations

from typing import Any

from . import gemma3_text, glm4, gpt_oss, llama, mistral, phi3, qwen2, qwen3, qwen3_5_text, qwen3_moe
from .family import Family

_KNOWN = (
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    qwen3_5_text.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    gemma3_text.FAMILY,
    glm4.FAMILY,
    gpt_oss.FAMILY,
    phi3.FAMILY,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _KNOWN}


def family_of(config: Any) -> Family | None:
    """The family of a transformers configuration. None for an unknown family: its model is not split and not
    changed."""
    return FAMILIES.get(config.model_type)
