"""Scores of several domains as one number: the mean over domains, each counted once whatever its number of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .intervals import NAN, Estimate, mean

if TYPE_CHECKING:
    from .evaluation import Evaluation

PREFIX = "eval/macro/"


def macro_pass_hat(evaluations: Sequence[Evaluation]) -> dict[int, Estimate]:
    """pass^k for each k that every domain has, as the mean over domains; ``tasks`` are all domains' together."""
    shared = set.intersection(*(set(one.summary.pass_hat) for one in evaluations)) if evaluations else set()
    return {k: mean_over_domains([one.summary.pass_hat[k] for one in evaluations]) for k in sorted(shared)}


def mean_over_domains(estimates: Sequence[Estimate], lowest: float = 0.0) -> Estimate:
    """The mean of independent estimates with its 95% interval, which stays within ``lowest`` and 1.

    The distances of the domains' own bounds are combined as roots of squares (MOVER: Zou and Donner 2008, Construction
    of confidence limits about effect measures, equation 2 with equal coefficients):
    low = m - sqrt(sum (v - l)^2) / n. There is no mean where a domain has no estimate.
    """
    if not estimates or not all(one.tasks for one in estimates):
        return Estimate(NAN, NAN, NAN, 0)
    n, value = len(estimates), mean([one.value for one in estimates])
    low = value - math.hypot(*(one.value - one.low for one in estimates)) / n
    high = value + math.hypot(*(one.high - one.value for one in estimates)) / n
    return Estimate(value, max(lowest, low), min(1.0, high), sum(one.tasks for one in estimates))


def macro_scalars(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Numbers of a validation of several domains for the logger: ``eval/macro/pass^1`` and the like; none of one."""
    if len(evaluations) < 2:
        return {}
    flat: dict[str, float] = {}
    for k, estimate in macro_pass_hat(evaluations).items():
        flat |= {f"pass^{k}": estimate.value, f"pass^{k}_low": estimate.low, f"pass^{k}_high": estimate.high}
    flat["mean_reward"] = mean([one.summary.mean_reward for one in evaluations])
    return {PREFIX + name: value for name, value in flat.items() if not math.isnan(value)}


def payload_of_all(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """One validation as JSON-able data: `Evaluation.payload` of one domain; of several, theirs under ``domains``.

    ``metrics`` are the numbers of all domains and of their mean.
    """
    if len(evaluations) == 1:
        return evaluations[0].payload()
    metrics: dict[str, float] = {}
    for one in evaluations:
        metrics |= one.scalars()
    domains: Mapping[str, Any] = {one.domain: one.payload() for one in evaluations}
    return {
        "domain": "+".join(domains),
        "weights_version": evaluations[0].weights_version,
        "metrics": metrics | macro_scalars(evaluations),
        "domains": domains,
    }
