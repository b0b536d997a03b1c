"""Tables of global ranks, from which the process groups of a layout are made. They need no communication, so one
process can make the tables of a layout of any size.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from tau2_lightning.config.allocation import ParallelSpec

DIMENSIONS = ("pp", "dp", "cp", "tp")
EXPERT_DIMENSIONS = ("stage", "copies", "rest", "ep")


def rank_table(spec: ParallelSpec) -> Tensor:
    """Global ranks by place, [p, d, c, t] int64: ranks of one t group are consecutive, and so are ranks of one
    stage."""
    return torch.arange(spec.world).view(spec.p, spec.d, spec.c, spec.t)


def expert_table(spec: ParallelSpec, replicate: int = 1) -> Tensor:
    """Global ranks by place for experts, [p, copies, rest, e] int64.

    The d*c*t ranks of a stage form groups of ``e`` consecutive ranks (Megatron-LM's order). Each group holds all
    experts of the stage's layers, each of its ranks 1/e of them. Ranks along ``rest`` hold the same experts, which FSDP
    shards over them; ranks along ``copies`` hold equal shards. The number of copies is the largest that divides both
    the number of groups and ``replicate``, the number of copies of the other parameters.
    """
    groups = spec.d * spec.c * spec.t // spec.e
    copies = gcd(replicate, groups)
    return rank_table(spec).view(spec.p, copies, groups // copies, spec.e)


def groups(table: Tensor, dimension: int) -> list[list[int]]:
    """The ranks that differ in ``dimension`` only, one list for each place in the other dimensions."""
    lists: list[list[int]] = table.movedim(dimension, -1).flatten(0, -2).tolist()
    return lists
