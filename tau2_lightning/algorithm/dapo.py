"""DAPO: decoupled clip and dynamic sampling (arXiv:2503.14476)."""

from __future__ import annotations

from dataclasses import dataclass

from .grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """GRPO with a higher clip, token mean and a soft penalty on overlong episodes.

    The collector does its dynamic sampling (refilling groups without signal). ``overlong_max_length`` counts the
    sampled tokens of an episode; the penalty begins ``overlong_buffer`` tokens below it.
    """

    overlong_max_length: int | None = 8192
