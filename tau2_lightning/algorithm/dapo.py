"""DAPO: decoupled clip and dynamic sampling (arXiv:2503.14476)."""

from __future__ import annotations

from dataclasses import dataclass

from .grpo import GRPO
from .rewards import Unit


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """GRPO with a higher clip, token mean and a soft penalty on overlong answers (eq. 13).

    The collector does its dynamic sampling (refilling groups without signal). An answer is a turn: its limit is
    ``gconfig.max_new_tokens``, which is what cuts it off. The penalty begins a fifth of the limit below it and is paid
    by the turn.
    """

    overlong_unit: Unit = "turn"
    overlong_max_length: int | None = 8192
    overlong_buffer: int | None = None
