"""A curve as one line of characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*%#"


def sparkline(values: Sequence[float], width: int, marks: str = BLOCKS) -> str:
    """``values`` from the smallest (the first of ``marks``) to the largest (the last), in at most ``width`` characters.

    More values than characters are averaged in neighbouring groups. A curve without a rise or fall is a low line.
    """
    count = min(width, len(values))
    if count < 1:
        return ""
    edges = [at * len(values) // count for at in range(count + 1)]
    means = [fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    if high <= low:
        return marks[0] * count
    return "".join(marks[round((value - low) / (high - low) * (len(marks) - 1))] for value in means)
