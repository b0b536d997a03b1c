"""DAPO: decoupled clip and dynamic sampling (arXiv:2503.14476)."""

from __future__ import annotations

from dataclasses import dataclass

from .grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """GRPO with a higher clip, token mean and a soft punishment of overlong episodes.

    Its dynamic sampling (refilling groups without signal) is the collector's. ``overlong_max_length`` is counted in
    sampled tokens of an episode; the punishment begins ``overlong_buffer`` tokens before it.
    """

    overlong_max_length: int | None = 8192
