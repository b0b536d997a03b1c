"""Micro-batches of rows in a forest: prefixes of many micro-batches become a trunk, which the model computes once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from tau2_lightning.microbatch import Trunk
from tau2_lightning.segments import Segment, shared_tokens

from .experts import forest_experts
from .rows import Row
from .runs import plan_runs
from .shared_prefixes import Layout

#: A shorter prefix is repeated: two more passes over it cost more than they save.
SHORTEST = 64


@dataclass(frozen=True)
class Part:
    """The rows of one micro-batch, and the trunk that it shares with others."""

    rows: list[Row]
    trunk: Trunk | None = None


def plan_parts(rows: Sequence[Row], budget: int, count: int | None = None, *, experts: bool = True) -> list[Part]:
    """Parts of at most ``budget`` tokens, not counting a trunk, of ``rows`` in the order of their forest.

    Rows with one beginning that need several micro-batches get a trunk. With ``count``, exactly that many parts, of
    which some may be empty. A row above the budget is its own part. Raises ValueError for a budget below 1 or a
    ``count`` that the budget does not allow. ``experts``: with the trunk's experts, where they are recorded.
    """
    parts: list[Part] = []
    loose: list[Row] = []
    for tree in _trees(rows):
        length = _trunk_length(tree) if _cost(tree, 0) > budget else 0
        if length < SHORTEST:
            loose += tree
            continue
        layout = Layout.of([row.leaf for row in tree])
        routed = forest_experts(layout.offsets, layout.tokens) if experts else None
        ids = torch.from_numpy(tree[0].leaf.flat()[:length].astype("int64"))[None]
        trunk = Trunk(ids, routed.cut(0, length) if routed is not None else None)
        parts += [Part(part, trunk) for part in _cut(tree, length, budget, None)]
    if count is None:
        return parts + [Part(part) for part in _cut(loose, 0, budget, None)]
    if len(parts) > count or (loose and len(parts) == count):
        needed = len(parts) + len(_cut(loose, 0, budget, None))
        raise ValueError(f"{needed} micro-batches of {budget} tokens are needed, {count} were asked for")
    return parts + [Part(part) for part in _cut(loose, 0, budget, count - len(parts))]


def _trees(rows: Sequence[Row]) -> list[list[Row]]:
    found: list[list[Row]] = []
    root: Segment | None = None
    for row in rows:
        own = row.leaf.path()[0]
        if own is not root:
            found.append([])
        root = own
        found[-1].append(row)
    return found


def _trunk_length(tree: Sequence[Row]) -> int:
    """Leading tokens that all rows share and that predict no label that a loss asks for; 0 for one row."""
    if len(tree) == 1:
        return 0
    first = min(int(row.loss_mask.argmax()) if row.loss_mask.any() else len(row) for row in tree)
    common = min(shared_tokens(a.leaf, b.leaf) for a, b in pairwise(tree))
    # Each part keeps at least one token of its own.
    return min(common, first, min(len(row) for row in tree) - 1)


def _sizes(rows: Sequence[Row], left_out: int) -> tuple[list[int], list[int]]:
    """Lengths of the rows, and tokens that each shares with the one before it, without the first ``left_out``."""
    shared = [0, *(shared_tokens(a.leaf, b.leaf) - left_out for a, b in pairwise(rows))]
    return [len(row) - left_out for row in rows], shared[: len(rows)]


def _cost(rows: Sequence[Row], left_out: int) -> int:
    lengths, shared = _sizes(rows, left_out)
    return sum(lengths) - sum(shared)


def _cut(rows: list[Row], left_out: int, budget: int, count: int | None) -> list[list[Row]]:
    return [[rows[i] for i in run] for run in plan_runs(*_sizes(rows, left_out), budget, count)]
