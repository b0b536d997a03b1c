"""Taking turns by weight: who comes next, so that shares hold at every moment and not only on average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import count


def turns(weights: Mapping[str, float]) -> Iterator[str]:
    """The names of ``weights`` in an endless order, each as often as its weight says.

    After n turns a name with the share s of all weights has had more than ``s n - 1`` and less than ``s n + 1`` turns,
    so exactly s n wherever that is a whole number. This is a Pfair schedule (Baruah et al. 1996, Proportionate
    progress) on one processor: turn number j of a name (from 0) is due in the window from floor(j / s) to
    ceil((j + 1) / s), and of the names that may have a turn the one with the earliest end of its window takes it; equal
    ends are settled by the order of ``weights``. Fractions, so that nothing drifts. Raises ValueError without names, or
    for a weight that is not positive.
    """
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    if not exact or min(exact.values()) <= 0:
        raise ValueError(f"weights must be positive, and one at least: {dict(weights)}")
    total = sum(exact.values())
    shares = {name: weight / total for name, weight in exact.items()}
    had = dict.fromkeys(shares, 0)
    for turn in count(1):
        may = [name for name, share in shares.items() if had[name] < share * turn]
        chosen = min(may, key=lambda name: math.ceil((had[name] + 1) / shares[name]))
        had[chosen] += 1
        yield chosen
