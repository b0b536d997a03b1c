"""Qwen3-MoE's router: the weights of experts that were chosen elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tau2_lightning.strategy.families.family import RouterPlan


def weigh(config: Any, logits: Tensor, index: Tensor) -> Tensor:
    """``logits`` [N, E] of all experts, ``index`` [N, k] int64 of the chosen ones -> their weights [N, k].

    w_j = p_j / sum over the chosen of p_i with p = softmax(logits) (without the division if ``norm_topk_prob`` is off),
    in float32 and then in the dtype of ``logits``, as the model's own router computes them. Differentiable.
    """
    chosen = logits.softmax(-1, dtype=torch.float32).gather(-1, index)
    if config.norm_topk_prob:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    return chosen.to(logits.dtype)


def _used(config: Any) -> int:
    return int(config.num_experts_per_tok)


ROUTER = RouterPlan("mlp.gate", weigh, _used)
