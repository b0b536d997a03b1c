"""Rewards before they become advantages: penalties, scaling, and the credit of an episode's turns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .advantages import group_extreme

#: The length that the overlong penalty looks at: all sampled tokens of an episode, or those of each turn.
Unit = Literal["episode", "turn"]


def scale_rewards(rewards: Tensor, *, bias: float = 0.0, scaling: float = 1.0, clip: float | None = None) -> Tensor:
    """``clip((r + bias) * scaling, -clip, +clip)`` (AReaL's reward_bias, reward_scaling, reward_clip). [N] -> [N]."""
    shaped = (rewards + bias) * scaling
    return shaped if clip is None else shaped.clamp(-clip, clip)


def overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int, factor: float = 1.0) -> Tensor:
    """Soft penalty on long answers, DAPO (arXiv:2503.14476, eq. 13). [N] int -> [N] float, in [-factor, 0].

    0 up to ``max_length - buffer`` sampled tokens, then linear down to ``-factor`` at ``max_length`` and beyond.
    """
    excess = (lengths.to(torch.float32) - (max_length - buffer)) / buffer
    return -factor * excess.clamp(0.0, 1.0)


def excess_length_penalty(lengths: Tensor, solved: Tensor, group_ids: Tensor, *, price: float, cap: float) -> Tensor:
    """Penalty on the sampled tokens of a solved episode beyond its group's shortest solved one. [N] -> [N].

    ``-min(cap, price * (length - shortest))`` for solved episodes, 0 for the others: the tokens that a task needs cost
    nothing, and in an unsolved group giving up early gains nothing. Relative to the group, as the length reward of Kimi
    k1.5 (arXiv:2501.12599). ``lengths`` int, ``solved`` bool, ``group_ids`` int.
    """
    far = torch.iinfo(lengths.dtype).max
    shortest = group_extreme(torch.where(solved, lengths, far), group_ids, "amin")
    excess = torch.where(solved, lengths - shortest, 0).to(torch.float64)
    return -(price * excess).clamp(max=cap)


def turn_returns(rewards: Tensor, discount: float) -> Tensor:
    """Return-to-go of each turn, ``R_i = r_i + discount * R_{i+1}`` (AReaL's turn_discount). [n] -> [n]."""
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(())
    for i in range(len(rewards) - 1, -1, -1):
        following = rewards[i] + discount * following
        returns[i] = following
    return returns


def turn_advantages(turn_rewards: Tensor, advantage: Tensor, scale: Tensor, discount: float) -> Tensor:
    """Advantage of each turn of one episode, [n].

    The episode's advantage ``A = (R - b) / s`` has a baseline b for its total reward R. The baseline is paid where
    the outcome is paid, at the last turn: centred turn rewards are ``r_i / s`` and, last, ``(r_n - b) / s``, and a
    turn's advantage is their return-to-go, as in outcome and process supervision of GRPO (arXiv:2402.03300, 4.1).
    With only a final reward this is ``discount**(n-1-i) * A``; with discount 1 and turn rewards, the first turn's is A.

    ``turn_rewards`` [n] sum to R; ``advantage`` A and ``scale`` s are scalars.
    """
    centred = turn_rewards / scale
    centred[-1] += advantage - turn_rewards.sum() / scale
    return turn_returns(centred, discount)
