"""Intervals for means over tasks with several trials each.

Trials of one task are alike, so tasks are what is sampled. The method is Wilson's score interval at the effective
sample size (as for complex surveys: Korn & Graubard 1998; Franco et al. 2019, J. Survey Statistics and Methodology
7(3)): n_eff = p (1 - p) / var(p), with var(p) the variance of the mean of the per-task estimates, and Student's t for
the normal quantile. It keeps its coverage at means of 0 and 1, where resampling tasks gives an interval of width zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy.special import stdtrit

LEVEL = 0.95
NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean over ``tasks`` tasks with its 95% interval. NaN where there was nothing to average."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.tasks} tasks)"


def clustered_interval(values: Sequence[float], max_effective: float) -> tuple[float, float]:
    """95% interval for the mean of per-task estimates in [0, 1]; the method is in the module's docstring.

    ``max_effective`` bounds the effective sample size: the number of independent observations there can have been. At
    a mean of 0 or 1 each task counts as one observation. (0, 1) for a single task, NaNs for none.
    """
    if not values:
        return NAN, NAN
    count, p = len(values), fmean(values)
    if count == 1:
        return 0.0, 1.0
    spread = variance(values) / count
    if p <= 0.0 or p >= 1.0:
        effective = float(count)
    elif spread <= 0.0:
        effective = max_effective
    else:
        effective = min(p * (1 - p) / spread, max_effective)
    z = student_t_quantile(0.5 + LEVEL / 2, count - 1)
    weight = z * z / effective
    centre = (p + weight / 2) / (1 + weight)
    half = z * math.sqrt(p * (1 - p) / effective + weight / (4 * effective)) / (1 + weight)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t. From ``scipy.special``: ``scipy.stats`` would take a second to import."""
    return float(stdtrit(degrees, probability))


def mean(values: Sequence[float]) -> float:
    """The mean; NaN without values."""
    return fmean(values) if values else NAN
