"""Micro-batches of rows in a forest: prefixes of many micro-batches become a trunk, which the model computes once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch

from tau2_lightning.microbatch import Trunk
from tau2_lightning.segments import shared_tokens

from .experts import forest_experts
from .rows import Row
from .runs import plan_runs
from .shared_prefixes import Layout

#: A shorter prefix is repeated.
SHORTEST = 64
#: What a trunk's token costs, in tokens of a micro-batch: one more pass forward, besides forward and backward.
TRUNK_COST = 4 / 3
#: Branches below so many others are not looked at for trunks of their own.
DEEPEST = 16


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
    for run in _Choice(rows, budget).best(0, len(rows))[1]:
        some = list(rows[run.start : run.end])
        if run.trunk:
            trunk = _trunk(some, run.trunk, experts)
            parts += [Part(part, trunk) for part in _cut(some, run.trunk, budget, None)]
        else:
            loose += some
    if count is None:
        return parts + [Part(part) for part in _cut(loose, 0, budget, None)]
    if len(parts) > count or (loose and len(parts) == count):
        needed = len(parts) + len(_cut(loose, 0, budget, None))
        raise ValueError(f"{needed} micro-batches of {budget} tokens are needed, {count} were asked for")
    return parts + [Part(part) for part in _cut(loose, 0, budget, count - len(parts))]


class _Neighbours(NamedTuple):
    """The rows ``[start, end)``, and how many of the tokens that they begin with become their trunk (0: none)."""

    start: int
    end: int
    trunk: int = 0


class _Choice:
    """Which neighbouring ``rows`` get a trunk, so that the model computes the fewest tokens.

    Rows that share much may be next to rows that share little with them: of two domains, whose prompts begin with the
    same few words, or of an agent's short question to the model. Each gets its own trunk then, or none.
    """

    def __init__(self, rows: Sequence[Row], budget: int) -> None:
        self._lengths, self._shared = _sizes(rows, 0)
        self._budget = budget
        # Tokens of each row that may be in a trunk: they predict no label that a loss asks for, and one is left.
        self._free = [
            min(int(row.loss_mask.argmax()) if row.loss_mask.any() else len(row), len(row) - 1) for row in rows
        ]

    def best(self, start: int, end: int, depth: int = 0) -> tuple[float, list[_Neighbours]]:
        """The tokens that the rows ``[start, end)`` cost, and the trunks with which they do."""
        found: tuple[float, list[_Neighbours]] = self._cost(start, end, 0), [_Neighbours(start, end)]
        if sum(self._lengths[start:end]) - sum(self._shared[start + 1 : end]) <= self._budget:
            return found
        common = min(self._shared[start + 1 : end], default=0)
        length = min(common, *self._free[start:end])
        if length >= SHORTEST:
            cost = TRUNK_COST * length + self._cost(start, end, length)
            found = min(found, (cost, [_Neighbours(start, end, length)]))
        cuts = [i for i in range(start + 1, end) if self._shared[i] == common]
        if cuts and depth < DEEPEST:
            branches = [self.best(*branch, depth + 1) for branch in pairwise([start, *cuts, end])]
            apart = sum(cost for cost, _ in branches), [each for _, some in branches for each in some]
            found = min(found, apart)
        return found

    def _cost(self, start: int, end: int, trunk: int) -> int:
        """Tokens of the micro-batches of the rows ``[start, end)`` behind ``trunk`` tokens."""
        lengths = [length - trunk for length in self._lengths[start:end]]
        shared = [0, *(length - trunk for length in self._shared[start + 1 : end])]
        runs = plan_runs(lengths, shared, self._budget)
        return sum(lengths) - sum(shared) + sum(shared[run[0]] for run in runs)


def _trunk(rows: Sequence[Row], length: int, experts: bool) -> Trunk:
    layout = Layout.of([row.leaf for row in rows])
    routed = forest_experts(layout.offsets, layout.tokens) if experts else None
    ids = torch.from_numpy(rows[0].leaf.flat()[:length].astype("int64"))[None]
    return Trunk(ids, routed.cut(0, length) if routed is not None else None)


def _sizes(rows: Sequence[Row], left_out: int) -> tuple[list[int], list[int]]:
    """Lengths of the rows, and tokens that each shares with the one before it, without the first ``left_out``."""
    shared = [0, *(shared_tokens(a.leaf, b.leaf) - left_out for a, b in pairwise(rows))]
    return [len(row) - left_out for row in rows], shared[: len(rows)]


def _cut(rows: list[Row], left_out: int, budget: int, count: int | None) -> list[list[Row]]:
    return [[rows[i] for i in run] for run in plan_runs(*_sizes(rows, left_out), budget, count)]
