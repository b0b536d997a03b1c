"""Which rows of a forest go together: runs of neighbours, because neighbours share the most. Pure functions of sizes.

Rows are numbered depth first. ``lengths`` are their tokens and ``shared[i]`` the leading tokens that row i has in
common with row i - 1, so a run from a to b costs ``lengths[a]`` and ``lengths[i] - shared[i]`` for each further row.
"""

from __future__ import annotations

from collections.abc import Sequence

Run = list[int]


def even_runs(lengths: Sequence[int], shared: Sequence[int], count: int) -> list[Run]:
    """At most ``count`` runs, in order, of which the most expensive is as cheap as possible; empty ones added to make
    ``count``."""
    return _evened(lengths, shared, count, sum(lengths))


def plan_runs(lengths: Sequence[int], shared: Sequence[int], budget: int, count: int | None = None) -> list[Run]:
    """The fewest runs that cost at most ``budget`` tokens each, made even; a row above the budget is its own run.

    With ``count``, exactly that many, of which some may be empty: more than the fewest are filled where that saves more
    of the longest run than it repeats of shared tokens. Raises ValueError for a budget below 1 or a ``count`` that the
    budget does not allow.
    """
    if budget < 1:
        raise ValueError(f"max_tokens_per_mb={budget}: a micro-batch needs at least one token")
    needed = len(_runs(lengths, shared, budget))
    if count is None:
        count = needed
    if needed > count:
        raise ValueError(f"{needed} micro-batches of {budget} tokens are needed, {count} were asked for")
    filled = needed
    plans = [_evened(lengths, shared, count, budget)]
    while 0 < filled < count:
        plans.append(_evened(lengths, shared, filled, budget))
        filled *= 2
    best = min(plans, key=lambda plan: _time(plan, lengths, shared))
    return best + [[] for _ in range(count - len(best))]


def _time(plan: Sequence[Run], lengths: Sequence[int], shared: Sequence[int]) -> int:
    """What a pipeline of two stages needs for the runs, in tokens that go through a stage: all, and the longest once
    more."""
    costs = [sum(lengths[i] - shared[i] for i in run) + shared[run[0]] for run in plan if run]
    return sum(costs) + max(costs, default=0)


def _evened(lengths: Sequence[int], shared: Sequence[int], count: int, high: int) -> list[Run]:
    """The runs of the smallest limit that allows ``count`` of them; the limit ``high`` does."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if len(_runs(lengths, shared, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    found = _runs(lengths, shared, high)
    return found + [[] for _ in range(count - len(found))]


def _runs(lengths: Sequence[int], shared: Sequence[int], limit: int) -> list[Run]:
    found: list[Run] = []
    cost = 0
    for i, length in enumerate(lengths):
        if found and cost + length - shared[i] <= limit:
            found[-1].append(i)
            cost += length - shared[i]
        else:
            found.append([i])
            cost = length
    return found
