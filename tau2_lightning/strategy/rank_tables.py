"""Which rank holds what: tables of global ranks, from which the process groups of a layout are made. Nothing is
communicated here, so a layout of any size can be looked at in one process.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from tau2_lightning.config.allocation import ParallelSpec

DIMENSIONS = ("pp", "dp", "cp", "tp")
EXPERT_DIMENSIONS = ("stage", "copies", "rest", "ep")


def rank_table(spec: ParallelSpec) -> Tensor:
    """Global ranks by place, [p, d, c, t] int64: neighbours in t are neighbours in rank, stages lie apart."""
    return torch.arange(spec.world).view(spec.p, spec.d, spec.c, spec.t)


def expert_table(spec: ParallelSpec, replicate: int = 1) -> Tensor:
    """Global ranks by place for experts, [p, copies, rest, e] int64.

    The d*c*t ranks of a stage are cut into groups of ``e`` consecutive ranks; each group holds all experts of the
    stage's layers, each rank 1/e of them (Megatron-LM's order). Ranks along ``rest`` hold the same experts and shard
    them; ranks along ``copies`` hold equal shards. There are as many copies as ``replicate``, the number for the other
    parameters, allows.
    """
    groups = spec.d * spec.c * spec.t // spec.e
    copies = gcd(replicate, groups)
    return rank_table(spec).view(spec.p, copies, groups // copies, spec.e)


def groups(table: Tensor, dimension: int) -> list[list[int]]:
    """The ranks that differ in ``dimension`` only, one list for each place in the other dimensions."""
    lists: list[list[int]] = table.movedim(dimension, -1).flatten(0, -2).tolist()
    return lists
