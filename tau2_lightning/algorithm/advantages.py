"""Advantages from rewards: an episode's reward relative to its group or batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Level = Literal["group", "batch", "none"]


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


def spread(rewards: Tensor, group_ids: Tensor, level: Level = "group", unbiased: bool = True) -> Tensor:
    """Standard deviation of the element's group or batch; 0 for a lone element, 1 for level ``none``. [N] -> [N]."""
    if level == "none":
        return torch.ones_like(rewards)
    ids = _ids(group_ids, level)
    count = group_sums(torch.ones_like(rewards), ids)
    squares = group_sums((rewards - baseline(rewards, ids, "group")) ** 2, ids)
    return (squares / (count - int(unbiased)).clamp(min=1)).sqrt()


def normalised_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    mean_level: Level = "group",
    std_level: Level = "group",
    leave_one_out: bool = False,
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    """``(r - mean) / (std + eps)``, each taken over the group, the batch or not at all. [N], [N] -> [N].

    Group/group is GRPO; group/none Dr.GRPO (arXiv:2503.20783); group with leave_one_out/none RLOO; group/batch
    REINFORCE++-baseline (arXiv:2501.03262). A group whose rewards are all equal has advantage exactly 0.
    """
    centred = rewards - baseline(rewards, group_ids, mean_level, leave_one_out)
    if mean_level == "group":
        # The mean of n equal floats can differ from them by an ulp, which 1/eps would turn into a signal.
        centred = torch.where(has_signal(rewards, group_ids), centred, torch.zeros_like(centred))
    return centred / advantage_unit(rewards, group_ids, std_level=std_level, unbiased=unbiased, eps=eps)


def advantage_unit(
    rewards: Tensor, group_ids: Tensor, *, std_level: Level, unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    """The reward that one unit of advantage represents: ``std + eps``, or 1 without a std. [N] -> [N]."""
    std = spread(rewards, group_ids, std_level, unbiased)
    return std if std_level == "none" else std + eps


def has_signal(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """True where the element's group has rewards that differ. [N], [N] -> [N] bool."""
    return group_extreme(rewards, group_ids, "amax") > group_extreme(rewards, group_ids, "amin")
