"""The settings of rewards, and what becomes of a reward before advantages are computed from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import rewards


@dataclass(frozen=True, kw_only=True)
class RewardShaping:
    """Rewards: ``reward_bias``, ``reward_scaling``, ``reward_clip``; ``turn_discount`` in [0, 1].

    ``invalid_format_penalty`` is taken off per malformed turn. ``overlong_max_length``, ``overlong_buffer`` (None: a
    fifth of it) and ``overlong_penalty_factor`` concern the sampled tokens of an episode or of each turn
    (``overlong_unit``). ``excess_length_price`` is paid per sampled token that a solved episode (reward above 0) is
    longer than its group's shortest solved one, at most ``excess_length_cap``. Raises ValueError, naming the setting.
    """

    reward_bias: float = 0.0
    reward_scaling: float = 1.0
    reward_clip: float | None = None
    turn_discount: float = 1.0
    invalid_format_penalty: float = 0.0
    overlong_unit: rewards.Unit = "episode"
    overlong_max_length: int | None = None
    overlong_buffer: int | None = 512
    overlong_penalty_factor: float = 1.0
    excess_length_price: float = 0.0
    excess_length_cap: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.turn_discount <= 1.0:
            raise ValueError(f"algorithm.turn_discount={self.turn_discount} is outside [0, 1]")
        limit, buffer = self.overlong_max_length, self.overlong_buffer
        if limit is not None and not 0 < (1 if buffer is None else buffer) <= limit:
            raise ValueError("algorithm.overlong_buffer must lie in (0, algorithm.overlong_max_length]")
        if self.excess_length_price < 0 or self.excess_length_cap <= 0:
            raise ValueError("algorithm.excess_length_price must not be negative, algorithm.excess_length_cap positive")

    def turn_penalty(self, tokens: int, *, truncated: bool, malformed: bool) -> float:
        """What a turn of ``tokens`` sampled tokens loses of its own reward, 0 or more.

        ``invalid_format_penalty`` if its tool call is ``malformed``; with ``overlong_unit=turn`` also the penalty on
        its length, in full if the turn was ``truncated`` by a limit.
        """
        penalty = self.invalid_format_penalty * malformed
        if self.overlong_unit == "turn" and self.overlong_max_length is not None:
            length = max(tokens, self.overlong_max_length) if truncated else tokens
            penalty -= float(self._overlong(torch.tensor([length]), self.overlong_max_length))
        return penalty

    def shaped_rewards(self, raw: Tensor, lengths: Tensor, group_ids: Tensor) -> Tensor:
        """Rewards of episodes after length penalties, then bias, scaling and clip. [N], [N] int, [N] int -> [N].

        ``raw`` is already less the penalties of the episode's turns; ``lengths`` are sampled tokens.
        """
        solved = raw > 0
        if self.overlong_unit == "episode" and self.overlong_max_length is not None:
            raw = raw + self._overlong(lengths, self.overlong_max_length)
        if self.excess_length_price:  # on solved episodes only: otherwise giving up early would be rewarded
            raw = raw + rewards.excess_length_penalty(
                lengths, solved, group_ids, price=self.excess_length_price, cap=self.excess_length_cap
            )
        return rewards.scale_rewards(raw, bias=self.reward_bias, scaling=self.reward_scaling, clip=self.reward_clip)

    def _overlong(self, lengths: Tensor, limit: int) -> Tensor:
        buffer = self.overlong_buffer or max(1, limit // 5)  # 4,096 of 20,480 tokens in DAPO
        return rewards.overlong_penalty(lengths, max_length=limit, buffer=buffer, factor=self.overlong_penalty_factor)
