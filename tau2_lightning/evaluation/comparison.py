"""Two recorded evaluations side by side: pass^k, intervals, and the difference; only of one world."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean, variance

from rich.table import Table

from tau2_lightning.errors import ConfigError, Violation

from .intervals import LEVEL, Estimate, student_t_quantile
from .macro import mean_over_domains
from .pass_hat import pass_hat_k
from .recorded import Recorded
from .stamp import differences

ANYWAY = "--anyway"
ByDomain = Mapping[str, Recorded]


def stamp_differences(one: ByDomain, other: ByDomain) -> list[str]:
    """What the worlds of two evaluations differ in; empty when their scores are comparable."""
    if one.keys() != other.keys():
        return [f"domain: {'+'.join(one)} or {'+'.join(other)}"]
    found = []
    for name, first in one.items():
        prefix = f"{name}." if len(one) > 1 else ""
        second = other[name]
        if not first.stamp or not second.stamp:
            bare = " and ".join(e.name for e in (first, second) if not e.stamp)
            found.append(f"{prefix}stamp: none in {bare}, which an earlier version wrote")
        else:
            found += [f"{prefix}{field}" for field in differences(first.stamp, second.stamp)]
    return found


def compare(one: ByDomain, other: ByDomain, *, anyway: bool = False) -> Table:
    """The table of two evaluations. Raises ConfigError, naming the fields that differ, when their stamps are not equal,
    unless ``anyway``: the table says it then.
    """
    different = stamp_differences(one, other)
    if different and not anyway:
        problem = f"scores of different worlds are not comparable: {'; '.join(different)}"
        raise ConfigError([Violation("report", "", problem, f"Evaluate both under one stamp, or add {ANYWAY}")])
    shared = [name for name in one if name in other]
    if not shared:
        raise ConfigError([Violation("report", "", "the evaluations have no domain in common", "Give others")])
    title = f"tau2 {'+'.join(shared)}"
    if different:
        title += f"\nNOT COMPARABLE, stamps differ in {'; '.join(different)}"
    stamp = "; ".join(f"{name} {one[name].stamp.get('digest', '-')}" for name in shared)
    table = Table(title=title, caption=None if different else f"stamp {stamp}")
    table.add_column("")
    for name in (one[shared[0]].name, other[shared[0]].name, "difference"):
        table.add_column(name, justify="right")
    for row in _rows(one, other, shared):
        table.add_row(*row)
    return table


def difference(one: Recorded, other: Recorded, k: int) -> Estimate:
    """pass^k of ``other`` less that of ``one``, paired by task, over the tasks that have k trials in both.

    The 95% interval is Student's for the mean of the tasks' differences. Where these do not vary, or there is one task,
    the intervals of both are combined instead (MOVER, see `mean_over_domains`), as if they were independent.
    """
    pairs = [
        pass_hat_k(other.trials[task][1], other.trials[task][0], k) - pass_hat_k(n, won, k)
        for task, (won, n) in one.trials.items()
        if n >= k and task in other.trials and other.trials[task][1] >= k
    ]
    if not pairs:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = fmean(pairs)
    if len(pairs) > 1 and (spread := variance(pairs)) > 0:
        half = student_t_quantile(0.5 + LEVEL / 2, len(pairs) - 1) * math.sqrt(spread / len(pairs))
        return Estimate(value, max(-1.0, value - half), min(1.0, value + half), len(pairs))
    a, b = one.pass_hat(k), other.pass_hat(k)
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(value, max(-1.0, low), min(1.0, high), len(pairs))


def _rows(one: ByDomain, other: ByDomain, shared: list[str]) -> Iterator[tuple[str, str, str, str]]:
    several = len(shared) > 1
    most = {name: min(one[name].max_k, other[name].max_k) for name in shared}
    for k in range(1, (min(most.values()) if several else 0) + 1):
        first, second = ([side[name].pass_hat(k) for name in shared] for side in (one, other))
        apart = mean_over_domains([difference(one[name], other[name], k) for name in shared], lowest=-1.0)
        texts = (_text(mean_over_domains(first)), _text(mean_over_domains(second)), _text(apart, "+"))
        yield (f"mean over domains pass^{k}", *texts)
    for name in shared:
        prefix, a, b = (f"{name} " if several else ""), one[name], other[name]
        for k in range(1, most[name] + 1):
            apart = difference(a, b, k)
            yield f"{prefix}pass^{k}", _text(a.pass_hat(k)), _text(b.pass_hat(k)), _text(apart, "+")
        yield f"{prefix}tasks", str(len(a.trials)), str(len(b.trials)), ""
        yield f"{prefix}episodes", str(a.episodes), str(b.episodes), ""
        lost = ["?" if each.excluded is None else str(each.excluded) for each in (a, b)]
        yield f"{prefix}excluded episodes", lost[0], lost[1], ""


def _text(estimate: Estimate, sign: str = "") -> str:
    if not estimate.tasks:
        return "-"
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
