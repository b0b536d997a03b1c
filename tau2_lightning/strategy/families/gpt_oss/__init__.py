"""gpt-oss: attention with a learned sink per head, every second layer within a sliding window, mixtures of experts."""

from __future__ import annotations

from typing import Any

from tau2_lightning.strategy.families.decoder import attention_products
from tau2_lightning.strategy.families.family import Family


def _products(config: Any) -> float:
    return float(attention_products(config) + 3 * config.num_experts_per_tok * config.intermediate_size)


FAMILY = Family(
    "gpt_oss",
    _products,
    layers_apart=True,
    reasons={
        "t": "its experts keep gate and up interleaved in one matrix, which t does not split",
        "e": "its experts have biases and interleaved columns, which are not spread over ranks",
    },
    own_projections=True,
)
