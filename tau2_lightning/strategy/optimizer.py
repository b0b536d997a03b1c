"""The optimizer of policy training and of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tau2_lightning.config.actor import OptimizerConfig

from .lean_adamw import LeanAdamW
from .moments import FORMATS


def adamw(
    parameters: Iterable[nn.Parameter], *, kind: str = "adam", offload: bool = False, **settings: Any
) -> torch.optim.Optimizer:
    """AdamW over those of ``parameters`` that require gradients, all on one kind of device.

    ``kind`` is ``actor.optimizer.type``, ``offload`` is ``actor.optimizer.offload``. Plain AdamW is torch's, fused on a
    GPU, and for parameters that FSDP keeps in the host's memory.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    here = trained[0].device.type == "cpu"
    if kind == "adam" and (here or not offload):
        fused = None if here and not torch.cuda.is_available() else True
        return torch.optim.AdamW(trained, fused=fused, **settings)
    return LeanAdamW(trained, kept=FORMATS[kind], offload=offload and not here, **settings)


def configured_adamw(parameters: Iterable[nn.Parameter], c: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW as ``actor.optimizer`` says."""
    settings = {"lr": c.lr, "betas": c.betas, "eps": c.eps, "weight_decay": c.weight_decay}
    return adamw(parameters, kind=c.type, offload=c.offload, **settings)
