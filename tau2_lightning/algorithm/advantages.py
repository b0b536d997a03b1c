"""Advantages from rewards: an episode's reward relative to its group or batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Level = Literal["group", "batch", "none"]
Spread = Literal["centred", "rewards"]


def group_sums(values: Tensor, group_ids: Tensor) -> Tensor:
    """Sum of ``values`` over the group of each element. [N], [N] -> [N]."""
    _, inverse = torch.unique(group_ids, return_inverse=True)
    sums = values.new_zeros(int(inverse.max()) + 1 if inverse.numel() else 0)
    return sums.index_add(0, inverse, values)[inverse]


def group_extreme(values: Tensor, group_ids: Tensor, which: Literal["amin", "amax"]) -> Tensor:
    """Smallest or largest of ``values`` in the group of each element. [N], [N] -> [N]."""
    _, inverse = torch.unique(group_ids, return_inverse=True)
    empty = values.new_zeros(int(inverse.max()) + 1 if inverse.numel() else 0)
    return empty.scatter_reduce(0, inverse, values, which, include_self=False)[inverse]


def _ids(group_ids: Tensor, level: Level) -> Tensor:
    return group_ids if level == "group" else torch.zeros_like(group_ids)


def baseline(rewards: Tensor, group_ids: Tensor, level: Level = "group", leave_one_out: bool = False) -> Tensor:
    """Mean reward of the element's group (GRPO, arXiv:2402.03300) or batch. [N] float, [N] int -> [N].

    ``leave_one_out`` leaves the element itself out (RLOO, arXiv:2402.14740): ``(sum - r_i) / (n - 1)``; a lone
    element is its own baseline, so its advantage is zero. Level ``none`` is zero.
    """
    if level == "none":
        return torch.zeros_like(rewards)
    ids = _ids(group_ids, level)
    total, count = group_sums(rewards, ids), group_sums(torch.ones_like(rewards), ids)
    mean = total / count
    if not leave_one_out:
        return mean
    return torch.where(count > 1, (total - rewards) / (count - 1).clamp(min=1), rewards)


def centred(rewards: Tensor, group_ids: Tensor, level: Level = "group", leave_one_out: bool = False) -> Tensor:
    """``r - baseline``, and exactly 0 where the difference is only the rounding of the mean. [N], [N] -> [N].

    The mean of n equal floats can differ from them by an ulp, which ``1 / norm_eps`` would turn into a signal.
    """
    difference = rewards - baseline(rewards, group_ids, level, leave_one_out)
    if level == "none":
        return difference
    ids = _ids(group_ids, level)
    count, largest = group_sums(torch.ones_like(rewards), ids), group_extreme(rewards.abs(), ids, "amax")
    rounding = 2 * torch.finfo(rewards.dtype).eps * count * largest
    return torch.where(difference.abs() > rounding, difference, torch.zeros_like(difference))


def spread(values: Tensor, group_ids: Tensor, level: Level, unbiased: bool = True) -> Tensor:
    """Root of the mean square of centred ``values`` over the element's group or batch. [N], [N] -> [N].

    ``unbiased`` divides the sum of squares by n - 1 instead of n (for a lone element by 1).
    """
    ids = _ids(group_ids, level)
    count = group_sums(torch.ones_like(values), ids)
    return (group_sums(values**2, ids) / (count - int(unbiased)).clamp(min=1)).sqrt()


def normalised_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    mean_level: Level = "group",
    std_level: Level = "group",
    std_of: Spread = "centred",
    leave_one_out: bool = False,
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    """``(r - mean) / (std + eps)``, each taken over the group, the batch or not at all. [N], [N] -> [N].

    The std is that of the centred rewards, ``sqrt(sum (r_j - mean_j)^2 / (n - 1))`` over the group or batch, about the
    mean that is subtracted (0 for ``mean_level=none``), as in AReaL. So n rewards have advantages of at most
    ``sqrt(n - 1)``, and a reward that equals its mean has advantage exactly 0, whatever the levels.

    Group/group is GRPO; group/none Dr.GRPO (arXiv:2503.20783); group with leave_one_out/none RLOO; group/batch
    REINFORCE++-baseline (arXiv:2501.03262) with one value per episode: `ReinforcePPBaseline` takes the batch's mean and
    std over tokens instead (`AdvNorm`), where a long episode weighs more. ``std_of=rewards`` divides by the std of the
    rewards themselves, about their own mean: with group/batch this is TRL's ``scale_rewards=batch`` (arXiv:2508.08221).
    """
    value = centred(rewards, group_ids, mean_level, leave_one_out)
    unit = advantage_unit(
        rewards,
        group_ids,
        mean_level=mean_level,
        std_level=std_level,
        std_of=std_of,
        leave_one_out=leave_one_out,
        unbiased=unbiased,
        eps=eps,
    )
    return torch.where(value == 0, value, value / unit)


def advantage_unit(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    mean_level: Level = "group",
    std_level: Level = "group",
    std_of: Spread = "centred",
    leave_one_out: bool = False,
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    """The reward that one unit of advantage represents: ``std + eps``, or 1 without a std. [N], [N] -> [N]."""
    if std_level == "none":
        return torch.ones_like(rewards)
    if std_of == "rewards":
        values = centred(rewards, group_ids, std_level)
    else:
        values = centred(rewards, group_ids, mean_level, leave_one_out)
    return spread(values, group_ids, std_level, unbiased) + eps
