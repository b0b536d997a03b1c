"""The order in which micro-batches, and the trunks that they continue, go through the model. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from tau2_lightning.microbatch import Trunk


class Pass(NamedTuple):
    """One run of the model: over micro-batches (``rows``, by number), or over ``trunks``, to record or to return."""

    kind: Literal["record", "rows", "return"]
    trunks: Sequence[Trunk] = ()
    rows: Sequence[int] = ()


def depth(trunks: Sequence[Trunk | None]) -> int:
    """How many trunks continue one another, at most."""
    return max((len(trunk.path()) for trunk in trunks if trunk is not None), default=0)


def one_by_one(trunks: Sequence[Trunk | None]) -> list[Pass]:
    """Passes of micro-batches that continue these ``trunks``: each trunk is returned before another one beside it is
    recorded, so that only the trunks of one micro-batch are in memory."""
    paths = [trunk.path() if trunk is not None else [] for trunk in trunks]
    first: dict[Trunk, int] = {}
    for number, path in enumerate(paths):
        for each in path:
            first.setdefault(each, number)
    # Micro-batches of a trunk follow each other, in whatever order they are given.
    order = sorted(range(len(paths)), key=lambda number: (*(first[each] for each in paths[number]), number))
    found: list[Pass] = []
    held: list[Trunk] = []
    for number in order:
        while held and held[-1] not in paths[number]:
            found.append(Pass("return", [held.pop()]))
        for each in paths[number][len(held) :]:
            found.append(Pass("record", [each]))
            held.append(each)
        found.append(Pass("rows", rows=[number]))
    return found + [Pass("return", [each]) for each in reversed(held)]


def together(trunks: Sequence[Trunk | None], levels: int) -> list[Pass]:
    """Passes in which ranks with different trunks make the same calls: all trunks that continue none, then those that
    continue one, and so on to the last of ``levels``; all micro-batches; and back."""
    every = dict.fromkeys(each for trunk in trunks if trunk is not None for each in trunk.path())
    by_level = [[each for each in every if len(each.path()) == level + 1] for level in range(levels)]
    recorded = [Pass("record", some) for some in by_level]
    returned = [Pass("return", some) for some in reversed(by_level)]
    return [*recorded, Pass("rows", rows=range(len(trunks))), *returned]
