"""Whether something that should stay the same grows, from readings of it: the slope of Theil and Sen.

The first third of the readings is left out: caches and arenas of memory fill. Of the rest the slope is the median of
the slopes of all pairs, so single steps, such as the restart of a process, do not move it. Its 95 % interval is of
independent errors; readings of memory are not independent, so the interval is rather too narrow than too wide.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import theilslopes

WARM_UP, FEWEST = 1 / 3, 6


@dataclass(frozen=True)
class Growth:
    """What a quantity grows by over a stated span, in its unit, with the ends of the 95 % interval; ``median`` is its
    usual value."""

    low: float
    estimate: float
    high: float
    median: float

    @property
    def fraction(self) -> float:
        """The lower end as a fraction of the usual value."""
        return self.low / self.median if self.median else 0.0

    def line(self, name: str, span: str, *, in_bytes: bool) -> str:
        """The result in words."""
        unit, word = (2**20, " MiB") if in_bytes else (1, "")
        low, estimate, high, median = (value / unit for value in (self.low, self.estimate, self.high, self.median))
        return f"{name}: {median:.2f}{word}, grows by {estimate:.2f}{word} [{low:.2f}, {high:.2f}] in {span}"


def growth(at: Sequence[float], values: Sequence[float], span: float) -> Growth:
    """How much ``values``, read at ``at``, grow while ``at`` grows by ``span``. Takes at least six readings."""
    first = int(len(values) * WARM_UP)
    late, settled = at[first:], values[first:]
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} readings are too few for a slope")
    slope = theilslopes(settled, late, alpha=0.95)
    low, estimate, high = (float(value) * span for value in (slope.low_slope, slope.slope, slope.high_slope))
    return Growth(low, estimate, high, statistics.median(settled))
