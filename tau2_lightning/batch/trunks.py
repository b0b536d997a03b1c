"""Micro-batches of rows in a forest: prefixes of many micro-batches become trunks, which the model computes once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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


@dataclass(frozen=True)
class Budget:
    """``tokens`` of a micro-batch. A token of its trunk counts as ``weight`` tokens, up to half of them: what its kept
    keys, values and gradients take beside a token's activations."""

    tokens: int
    weight: float = 0.0

    def behind(self, trunk: int) -> int:
        """Tokens of a micro-batch behind a trunk of so many."""
        return self.tokens - min(int(self.weight * trunk), self.tokens // 2)


def plan_parts(rows: Sequence[Row], budget: Budget, count: int | None = None, *, experts: bool = True) -> list[Part]:
    """Parts that keep to ``budget``, of ``rows`` in the order of their forest.

    Rows with one beginning that need several micro-batches get a trunk; a trunk may continue another. The parts of a
    trunk follow each other. With ``count``, exactly that many parts, of which some may be empty. A row above the budget
    is its own part. Raises ValueError for a budget below 1 or a ``count`` that the budget does not allow. ``experts``:
    with the trunks' experts, where they are recorded.
    """
    chosen = _Choice(rows, budget).best(0, len(rows))
    parts = [part for planned in chosen.trunks for part in _parts(rows, planned, None, budget, experts)]
    loose = _of(rows, chosen.loose)
    if count is None:
        return parts + [Part(part) for part in _cut(loose, 0, budget, None)]
    if len(parts) > count or (loose and len(parts) == count):
        needed = len(parts) + len(_cut(loose, 0, budget, None))
        raise ValueError(f"{needed} micro-batches of {budget.tokens} tokens are needed, {count} were asked for")
    return parts + [Part(part) for part in _cut(loose, 0, budget, count - len(parts))]


def _parts(rows: Sequence[Row], planned: _Planned, parent: Trunk | None, budget: Budget, experts: bool) -> list[Part]:
    """The parts behind a trunk that continues ``parent``: its own ones, then those of the trunks that continue it."""
    below = [rows[i] for i in range(planned.start, planned.end)]
    trunk = _trunk(below, planned.length, parent, experts)
    own = _cut(_of(rows, planned.rest.loose), planned.length, budget, None)
    deeper = [part for each in planned.rest.trunks for part in _parts(rows, each, trunk, budget, experts)]
    return [*(Part(part, trunk) for part in own), *deeper]


@dataclass(frozen=True)
class _Chosen:
    """What becomes of some neighbouring rows that have a beginning computed already: the tokens that this ``cost``s,
    the ranges of rows that are ``loose``, and the ``trunks`` of the others."""

    cost: float
    loose: list[range]
    trunks: list[_Planned]


@dataclass(frozen=True)
class _Planned:
    """A trunk: the first ``length`` tokens, with those of its parents, of the rows ``[start, end)``."""

    start: int
    end: int
    length: int
    rest: _Chosen


class _Choice:
    """Which neighbouring ``rows`` get a trunk, so that the model computes the fewest tokens.

    Rows that share much may be next to rows that share little with them: of two domains, whose prompts begin with the
    same few words, or of an agent's short question to the model. Each gets its own trunk then, or none. Where tasks of
    a domain share its policy, and rows of a task more, the trunk of each task continues that of the domain.
    """

    def __init__(self, rows: Sequence[Row], budget: Budget) -> None:
        self._lengths, self._shared = _sizes(rows, 0)
        self._budget = budget
        # Tokens of each row that may be in a trunk: they predict no label that a loss asks for, and one is left.
        self._free = [
            min(int(row.loss_mask.argmax()) if row.loss_mask.any() else len(row), len(row) - 1) for row in rows
        ]
        self._known: dict[tuple[int, int, int], _Chosen] = {}

    def best(self, start: int, end: int, behind: int = 0, depth: int = 0) -> _Chosen:
        """The trunks with which the rows ``[start, end)`` cost the fewest tokens; their first ``behind`` tokens are in
        a trunk already."""
        key = start, end, behind
        if key not in self._known:
            self._known[key] = min(self._choices(start, end, behind, depth), key=lambda chosen: chosen.cost)
        return self._known[key]

    def _choices(self, start: int, end: int, behind: int, depth: int) -> list[_Chosen]:
        together = self._together(start, end, behind)
        own, shared = self._lengths[start:end], self._shared[start + 1 : end]
        if sum(own) - behind - sum(shared) <= self._budget.behind(behind):
            return [together]
        common = min(shared, default=0)
        length = min(common, *self._free[start:end])
        cuts = [i for i in range(start + 1, end) if self._shared[i] == common]
        branches = list(pairwise([start, *cuts, end])) if cuts and depth < DEEPEST else []
        found = [together]
        if branches:
            found.append(self._apart(branches, behind, depth))
        if length - behind >= SHORTEST:
            ways = [self._together(start, end, length)]
            if branches:
                ways.append(self._apart(branches, length, depth))
            rest = min(ways, key=lambda chosen: chosen.cost)
            cost = TRUNK_COST * (length - behind) + rest.cost
            found.append(_Chosen(cost, [], [_Planned(start, end, length, rest)]))
        return found

    def _together(self, start: int, end: int, behind: int) -> _Chosen:
        """Without another trunk."""
        lengths = [length - behind for length in self._lengths[start:end]]
        shared = [0, *(length - behind for length in self._shared[start + 1 : end])]
        runs = plan_runs(lengths, shared, self._budget.behind(behind))
        cost = sum(lengths) - sum(shared) + sum(shared[run[0]] for run in runs)
        return _Chosen(cost, [range(start, end)], [])

    def _apart(self, branches: Sequence[tuple[int, int]], behind: int, depth: int) -> _Chosen:
        """Each branch by itself."""
        every = [self.best(*branch, behind, depth + 1) for branch in branches]
        loose = [rows for chosen in every for rows in chosen.loose]
        return _Chosen(sum(chosen.cost for chosen in every), loose, [t for chosen in every for t in chosen.trunks])


def _of(rows: Sequence[Row], ranges: Sequence[range]) -> list[Row]:
    return [rows[i] for each in ranges for i in each]


def _trunk(rows: Sequence[Row], length: int, parent: Trunk | None, experts: bool) -> Trunk:
    layout = Layout.of([row.leaf for row in rows])
    routed = forest_experts(layout.offsets, layout.tokens) if experts else None
    start = parent.length if parent is not None else 0
    ids = torch.from_numpy(rows[0].leaf.flat()[start:length].astype("int64"))[None]
    return Trunk(ids, routed.cut(start, length) if routed is not None else None, parent)


def _sizes(rows: Sequence[Row], left_out: int) -> tuple[list[int], list[int]]:
    """Lengths of the rows, and tokens that each shares with the one before it, without the first ``left_out``."""
    shared = [0, *(shared_tokens(a.leaf, b.leaf) - left_out for a, b in pairwise(rows))]
    return [len(row) - left_out for row in rows], shared[: len(rows)]


def _cut(rows: list[Row], left_out: int, budget: Budget, count: int | None) -> list[list[Row]]:
    return [[rows[i] for i in run] for run in plan_runs(*_sizes(rows, left_out), budget.behind(left_out), count)]
