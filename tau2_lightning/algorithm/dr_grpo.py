"""Dr.GRPO: GRPO without its length and difficulty biases (arXiv:2503.20783)."""

from __future__ import annotations

from dataclasses import dataclass

from .advantages import Level
from .aggregation import Aggregation
from .grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """``A = r - mean_group``; the loss is a sum of tokens over ``n_rows * constant_length``."""

    std_level: Level = "none"
    aggregation: Aggregation = "constant_length"
    constant_length: int | None = 1024
    eps_clip_higher: float = 0.2
