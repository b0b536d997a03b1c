"""Credit assignment: the advantage of an episode, divided over the turns of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rewards import turn_advantages


@dataclass(frozen=True)
class Credit:
    """The result of ``credit``: shaped ``rewards`` [N] and ``advantages`` [N] of episodes, and of each row the
    ``turn_advantages`` [n] of its n turns. All float64.
    """

    rewards: Tensor
    advantages: Tensor
    turn_advantages: tuple[Tensor, ...]


def finite(values: Sequence[float] | Tensor, name: str) -> Tensor:
    """``values`` [N] as float64. Raises ValueError with the ``name`` and the index of the first that is no finite
    number."""
    numbers = torch.as_tensor(values, dtype=torch.float64)
    wrong = (~torch.isfinite(numbers)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(f"{name} {at} is {float(numbers[at])}: only finite numbers may become advantages")
    return numbers


def turn_credit(
    turn_rewards: Sequence[Tensor], episodes: Sequence[int], advantages: Tensor, units: Tensor, discount: float
) -> tuple[Tensor, ...]:
    """Advantages [n] of each row's turns.

    ``turn_rewards`` [n] of each row are its turns' own rewards and penalties, without the outcome; ``episodes`` names
    the episode of each row. ``advantages`` [N] and ``units`` [N] are those of episodes: ``A = (R - b) / s``, where R is
    the outcome plus the own rewards of all turns of all rows.

    The outcome belongs to every row, a turn's own reward only to the row that has the turn. A row's total is therefore
    R less the own rewards of the episode's other rows, and its advantage ``A - sum(others) / s``, which
    `rewards.turn_advantages` divides over its turns. With one row it is A.
    """
    own = advantages.new_tensor([float(chain.sum()) for chain in turn_rewards])
    total = torch.zeros_like(advantages).index_add(0, torch.as_tensor(episodes, dtype=torch.int64), own)
    found = []
    for e, chain, mine in zip(episodes, turn_rewards, own, strict=True):
        advantage = advantages[e] - (total[e] - mine) / units[e]
        found.append(turn_advantages(chain, advantage, units[e], discount) if len(chain) else chain)
    return tuple(found)
