"""The families the strategy knows, by the ``model_type`` of their configuration. A new family adds one line here."""

from __future__ import annotations

from typing import Any

from . import llama, mistral, qwen2, qwen3, qwen3_moe
from .family import Family

_KNOWN = (qwen2.FAMILY, qwen3.FAMILY, qwen3_moe.FAMILY, llama.FAMILY, mistral.FAMILY)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _KNOWN}


def family_of(config: Any) -> Family | None:
    """The family of a transformers configuration. None for an unknown family: its model is not split and not
    changed."""
    return FAMILIES.get(config.model_type)
