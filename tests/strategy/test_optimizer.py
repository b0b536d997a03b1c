"""The optimizer that every kind of training uses."""

from __future__ import annotations

import torch
from torch import nn

from tau2_lightning.strategy.optimizer import adamw


def test_only_what_is_trained_and_as_told() -> None:
    frozen, trained = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(3))
    [group] = adamw([frozen, trained], lr=0.2, betas=(0.8, 0.9), weight_decay=0.3).param_groups
    assert group["params"] == [trained]
    assert (group["lr"], group["betas"], group["weight_decay"], group["fused"]) == (0.2, (0.8, 0.9), 0.3, None)
