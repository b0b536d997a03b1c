"""What an evaluation says of an agent: pass^k with intervals, and what a single number would hide.

pass^k is the chance that k independent trials of a task all succeed, averaged over tasks (Yao et al. 2024, tau-bench,
arXiv 2406.12045). With c successes in n trials of a task, ``comb(c, k) / comb(n, k)`` estimates it without bias.

Intervals are task-clustered: trials of one task are alike, so tasks are what is sampled. The method is Wilson's score
interval at the effective sample size (as for complex surveys: Korn & Graubard 1998; Franco et al. 2019, J. Survey
Statistics and Methodology 7(3)): n_eff = p (1 - p) / var(p), with var(p) the variance of the mean of the per-task
estimates, and Student's t for the normal quantile. It stays honest at 0 and 1, where resampling tasks would report an
interval of width zero.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, variance
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from tau2_lightning.trajectory import EpisodeOutcome

SUCCESS_TOLERANCE = 1e-6
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


@dataclass(frozen=True)
class EvaluationSummary:
    """One evaluation of one agent with one user.

    ``pass_hat[k]`` is over the tasks with at least k trials. ``needless_transfer_rate`` and ``pass_1_no_transfer`` are
    over the tasks whose gold solution transfers to nobody: transferring at once solves the others without skill.
    ``tool_error_rate`` is errors per tool call; ``mistakes`` and ``terminations`` count by kind; ``excluded`` counts
    episodes lost to infrastructure faults by ``component:cause``: they are in no other number.
    """

    episodes: int
    pass_hat: Mapping[int, Estimate]
    transfer_rate: Estimate
    needless_transfer_rate: Estimate
    pass_1_no_transfer: Estimate
    mean_reward: float
    mean_turns: float
    mean_tool_calls: float
    tool_error_rate: float
    mistakes: Mapping[str, int] = field(default_factory=dict)
    terminations: Mapping[str, int] = field(default_factory=dict)
    user: str = ""
    excluded: Mapping[str, int] = field(default_factory=dict)

    def as_scalars(self, prefix: str = "") -> dict[str, float]:
        """Flat numbers for a logger, without NaNs; keys like ``pass^1``, ``pass^1_low``, ``mistakes/empty_reply``."""
        estimates = {f"pass^{k}": estimate for k, estimate in self.pass_hat.items()}
        estimates |= {
            "transfer_rate": self.transfer_rate,
            "needless_transfer_rate": self.needless_transfer_rate,
            "pass^1_no_transfer": self.pass_1_no_transfer,
        }
        flat = {"episodes": float(self.episodes), "excluded": float(sum(self.excluded.values()))}
        for name, estimate in estimates.items():
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        for name in ("mean_reward", "mean_turns", "mean_tool_calls", "tool_error_rate"):
            flat[name] = getattr(self, name)
        counts = {"mistakes": self.mistakes, "terminations": self.terminations, "excluded": self.excluded}
        for group, counted in counts.items():
            flat |= {f"{group}/{kind}": float(count) for kind, count in counted.items()}
        return {prefix + key: value for key, value in flat.items() if not math.isnan(value)}


def summarize(
    outcomes: Iterable[EpisodeOutcome],
    *,
    rewards: Iterable[tuple[str, float]] = (),
    excluded: Mapping[str, int] | None = None,
    max_k: int = 4,
) -> EvaluationSummary:
    """Summary of all episodes of an evaluation: every trial of every task, in any order, ragged or not.

    ``rewards`` are (task id, reward) of episodes of which no more is known, as other people's agents tell no more: they
    count in ``episodes``, ``pass_hat`` and ``mean_reward`` alone.
    """
    episodes, others = list(outcomes), list(rewards)
    plain = [outcome for outcome in episodes if not outcome.transfer_expected]
    scored = [(outcome.task_id, outcome.reward) for outcome in episodes] + others
    trials = _grouped((task_id, _is_success(reward)) for task_id, reward in scored)
    most = max(map(len, trials), default=0)
    calls = sum(outcome.tool_calls for outcome in episodes)
    return EvaluationSummary(
        episodes=len(scored),
        pass_hat={k: pass_hat_k_estimate(trials, k) for k in range(1, min(max_k, most) + 1)},
        transfer_rate=pass_hat_k_estimate(_by_task(episodes, _transferred), 1),
        needless_transfer_rate=pass_hat_k_estimate(_by_task(plain, _transferred), 1),
        pass_1_no_transfer=pass_hat_k_estimate(_by_task(plain, succeeded), 1),
        mean_reward=_mean([reward for _, reward in scored]),
        mean_turns=_mean([outcome.turns for outcome in episodes]),
        mean_tool_calls=_mean([outcome.tool_calls for outcome in episodes]),
        tool_error_rate=sum(outcome.tool_errors for outcome in episodes) / calls if calls else NAN,
        mistakes=_added(outcome.mistakes for outcome in episodes),
        terminations=_added({outcome.termination_reason: 1} for outcome in episodes),
        user=", ".join(sorted({outcome.user for outcome in episodes})),
        excluded=dict(excluded or {}),
    )


class PassHatK(torchmetrics.Metric):
    """pass^k as a torchmetric: feed trials in any order and from any rank, get the mean over tasks.

    Tasks with fewer than ``k`` trials are left out; NaN when none is left. State: a digest of the task id (int64) and
    whether the trial succeeded (bool), one element a trial, gathered over ranks.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    tasks: list[Tensor]
    successes: list[Tensor]

    def __init__(self, k: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be positive, got {k}")
        self.k = k
        self.add_state("tasks", default=[], dist_reduce_fx="cat")
        self.add_state("successes", default=[], dist_reduce_fx="cat")

    def update(self, task_ids: Sequence[str], rewards: Tensor | Sequence[float]) -> None:
        """Add trials: one task id and one reward each."""
        values = torch.as_tensor(rewards, dtype=torch.float64, device=self.device)
        if values.shape != (len(task_ids),):
            raise ValueError(f"{len(task_ids)} task ids but rewards of shape {tuple(values.shape)}")
        digests = [int.from_bytes(hashlib.sha256(i.encode()).digest()[:8], "big", signed=True) for i in task_ids]
        self.tasks.append(torch.tensor(digests, dtype=torch.int64, device=self.device))
        self.successes.append((values - 1.0).abs() <= SUCCESS_TOLERANCE)

    def compute(self) -> Tensor:
        """pass^k, float64 scalar."""
        tasks, successes = _joined(self.tasks), _joined(self.successes)
        _, owner = torch.unique(tasks, return_inverse=True)
        trials: list[list[bool]] = [[] for _ in range(int(owner.max()) + 1 if owner.numel() else 0)]
        for index, success in zip(owner.tolist(), successes.tolist(), strict=True):
            trials[index].append(bool(success))
        return torch.tensor(pass_hat_k_estimate(trials, self.k).value, dtype=torch.float64, device=self.device)


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
    return Estimate(_mean(values), low, high, len(values))


def clustered_interval(values: Sequence[float], max_effective: float) -> tuple[float, float]:
    """95% interval for the mean of per-task estimates in [0, 1]; the method is in the module's docstring.

    ``max_effective`` bounds the effective sample size: the number of independent observations there can have been. At
    a mean of 0 or 1 each task counts as one observation. (0, 1) for a single task, NaNs for none.
    """
    if not values:
        return NAN, NAN
    count, mean = len(values), fmean(values)
    if count == 1:
        return 0.0, 1.0
    spread = variance(values) / count
    if mean <= 0.0 or mean >= 1.0:
        effective = float(count)
    elif spread <= 0.0:
        effective = max_effective
    else:
        effective = min(mean * (1 - mean) / spread, max_effective)
    z = student_t_quantile(0.5 + LEVEL / 2, count - 1)
    weight = z * z / effective
    centre = (mean + weight / 2) / (1 + weight)
    half = z * math.sqrt(mean * (1 - mean) / effective + weight / (4 * effective)) / (1 + weight)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def student_t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t. Exact for 1 and 2 degrees of freedom, else Fisher & Cornish's expansion (relative error
    below 1% from 3 degrees on, below 1e-4 from 10 on, at the 97.5% point).
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        centred = 2 * probability - 1
        return centred * math.sqrt(2 / (1 - centred * centred))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def succeeded(outcome: EpisodeOutcome) -> bool:
    """tau2's own criterion: the reward is 1 within 1e-6."""
    return _is_success(outcome.reward)


def _is_success(reward: float) -> bool:
    return abs(reward - 1.0) <= SUCCESS_TOLERANCE


def _transferred(outcome: EpisodeOutcome) -> bool:
    return outcome.transferred


def _by_task(outcomes: Iterable[EpisodeOutcome], happened: Callable[[EpisodeOutcome], bool]) -> list[list[bool]]:
    return _grouped((outcome.task_id, happened(outcome)) for outcome in outcomes)


def _grouped(trials: Iterable[tuple[str, bool]]) -> list[list[bool]]:
    by_task: defaultdict[str, list[bool]] = defaultdict(list)
    for task_id, happened in trials:
        by_task[task_id].append(happened)
    return list(by_task.values())


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else NAN


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    # After a gather torchmetrics holds one tensor instead of the list.
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0, dtype=torch.int64)
