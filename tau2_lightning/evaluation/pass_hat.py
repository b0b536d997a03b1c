"""pass^k: the chance that k independent trials of a task all succeed, averaged over tasks.

From Yao et al. 2024, tau-bench, arXiv 2406.12045. With c successes in n trials of a task, ``comb(c, k) / comb(n, k)``
estimates it without bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .intervals import Estimate, clustered_interval, mean

if TYPE_CHECKING:
    from tau2_lightning.trajectory import EpisodeOutcome

SUCCESS_TOLERANCE = 1e-6


def pass_hat_k(trials: int, successes: int, k: int) -> float:
    """Unbiased estimate of one task's pass^k: ``comb(successes, k) / comb(trials, k)``. Needs ``trials >= k``."""
    if trials < k:
        raise ValueError(f"{trials} trials cannot estimate pass^{k}")
    return math.comb(successes, k) / math.comb(trials, k)


def pass_hat_k_estimate(trials: Iterable[Sequence[bool]], k: int) -> Estimate:
    """pass^k over tasks, given each task's trials, with its interval. Tasks with fewer than k trials are left out."""
    enough = [task for task in trials if len(task) >= k]
    values = [pass_hat_k(len(task), sum(task), k) for task in enough]
    low, high = clustered_interval(values, sum(len(task) // k for task in enough))
    return Estimate(mean(values), low, high, len(values))


def succeeded(outcome: EpisodeOutcome) -> bool:
    """tau2's own criterion: the reward is 1 within 1e-6."""
    return is_success(outcome.reward)


def is_success(reward: float) -> bool:
    """Whether ``reward`` is 1 within 1e-6."""
    return abs(reward - 1.0) <= SUCCESS_TOLERANCE


def trials_by_task(scored: Iterable[tuple[str, float]]) -> dict[str, tuple[int, int]]:
    """(successes, trials) by task id, of (task id, reward) of each trial."""
    counts: dict[str, tuple[int, int]] = {}
    for task_id, reward in scored:
        successes, trials = counts.get(task_id, (0, 0))
        counts[task_id] = (successes + is_success(reward), trials + 1)
    return counts
