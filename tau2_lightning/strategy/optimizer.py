"""The optimizer of policy training and of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def adamw(parameters: Iterable[nn.Parameter], **settings: Any) -> torch.optim.AdamW:
    """AdamW over those of ``parameters`` that require gradients, all on one kind of device; fused on a GPU."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.AdamW(trained, fused=trained[0].is_cuda or None, **settings)
