"""The summary of an evaluation: pass^k with intervals, and the rates and counts that a single number would hide."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tau2_lightning.trajectory import EpisodeOutcome

from .intervals import NAN, Estimate, mean
from .pass_hat import is_success, pass_hat_k_estimate, succeeded


@dataclass(frozen=True)
class EvaluationSummary:
    """Numbers about one evaluation of one agent with one user.

    ``pass_hat[k]`` is over the tasks with at least k trials. ``needless_transfer_rate`` and ``pass_1_no_transfer`` are
    over the tasks whose gold solution does not transfer: transferring immediately solves the others without skill.
    ``tool_error_rate`` is errors per tool call; ``mistakes`` and ``terminations`` count by kind; ``excluded`` counts
    episodes lost to infrastructure faults by ``component:cause``: they are in no other number, except
    ``as_failures[k]`` and ``as_successes[k]``, which are pass^k with every excluded episode counted as one (empty
    without exclusions, or where it is not known of which tasks they were). ``planned`` counts the episodes that should
    have been played, 0 if that is not known. ``user_faults`` counts the simulated
    user's faults by kind, ``with_user_faults`` the finished episodes that have one.
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
    user_faults: Mapping[str, int] = field(default_factory=dict)
    with_user_faults: int = 0
    as_failures: Mapping[int, Estimate] = field(default_factory=dict)
    as_successes: Mapping[int, Estimate] = field(default_factory=dict)
    planned: int = 0

    @property
    def partial(self) -> bool:
        """Whether episodes are missing, so that pass^k is of a part only."""
        return self.planned > self.episodes

    def as_scalars(self, prefix: str = "") -> dict[str, float]:
        """Flat numbers for a logger, without NaNs; keys like ``pass^1``, ``pass^1_low``, ``mistakes/empty_reply``."""
        estimates = {f"pass^{k}": estimate for k, estimate in self.pass_hat.items()}
        estimates |= {
            "transfer_rate": self.transfer_rate,
            "needless_transfer_rate": self.needless_transfer_rate,
            "pass^1_no_transfer": self.pass_1_no_transfer,
        }
        estimates |= {f"pass^{k}_excluded_as_failures": estimate for k, estimate in self.as_failures.items()}
        estimates |= {f"pass^{k}_excluded_as_successes": estimate for k, estimate in self.as_successes.items()}
        flat = {"episodes": float(self.episodes), "excluded": float(sum(self.excluded.values()))}
        if self.partial:
            flat["planned"] = float(self.planned)
        if self.episodes:
            flat["user_faults"] = float(self.with_user_faults)
        for name, estimate in estimates.items():
            flat |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        for name in ("mean_reward", "mean_turns", "mean_tool_calls", "tool_error_rate"):
            flat[name] = getattr(self, name)
        counts = {
            "mistakes": self.mistakes,
            "terminations": self.terminations,
            "excluded": self.excluded,
            "user_faults": self.user_faults,
        }
        for group, counted in counts.items():
            flat |= {f"{group}/{kind}": float(count) for kind, count in counted.items()}
        return {prefix + key: value for key, value in flat.items() if not math.isnan(value)}


def summarize(
    outcomes: Iterable[EpisodeOutcome],
    *,
    rewards: Iterable[tuple[str, float]] = (),
    excluded: Mapping[str, int] | None = None,
    planned: Mapping[str, int] | None = None,
    max_k: int = 4,
) -> EvaluationSummary:
    """Summary of all episodes of an evaluation: every trial of every task, in any order, ragged or not.

    ``rewards`` are (task id, reward) of episodes that have no outcome, because a user's own agent played them.
    They count in ``episodes``, ``pass_hat`` and ``mean_reward`` only. ``planned`` are the trials of each task that the
    evaluation meant to play: what is missing of them was excluded.
    """
    episodes, others = list(outcomes), list(rewards)
    plain = [outcome for outcome in episodes if not outcome.transfer_expected]
    scored = [(outcome.task_id, outcome.reward) for outcome in episodes] + others
    results = [(task_id, is_success(reward)) for task_id, reward in scored]
    trials = _grouped(results)
    missing = list((Counter(planned or {}) - Counter(task_id for task_id, _ in results)).elements())
    most = max(map(len, trials), default=0)
    calls = sum(outcome.tool_calls for outcome in episodes)
    return EvaluationSummary(
        episodes=len(scored),
        pass_hat={k: pass_hat_k_estimate(trials, k) for k in range(1, min(max_k, most) + 1)},
        transfer_rate=pass_hat_k_estimate(_by_task(episodes, _transferred), 1),
        needless_transfer_rate=pass_hat_k_estimate(_by_task(plain, _transferred), 1),
        pass_1_no_transfer=pass_hat_k_estimate(_by_task(plain, succeeded), 1),
        mean_reward=mean([reward for _, reward in scored]),
        mean_turns=mean([outcome.turns for outcome in episodes]),
        mean_tool_calls=mean([outcome.tool_calls for outcome in episodes]),
        tool_error_rate=sum(outcome.tool_errors for outcome in episodes) / calls if calls else NAN,
        mistakes=_added(outcome.mistakes for outcome in episodes),
        terminations=_added({outcome.termination_reason: 1} for outcome in episodes),
        user=", ".join(sorted({outcome.user for outcome in episodes})),
        excluded=dict(excluded or {}),
        user_faults=_added(outcome.user_faults for outcome in episodes),
        with_user_faults=sum(bool(outcome.user_faults) for outcome in episodes),
        as_failures=_with_missing(results, missing, max_k, success=False),
        as_successes=_with_missing(results, missing, max_k, success=True),
        planned=sum((planned or {}).values()),
    )


def _with_missing(
    results: list[tuple[str, bool]], missing: list[str], max_k: int, *, success: bool
) -> dict[int, Estimate]:
    """pass^k with the ``missing`` trials, by task id, counted as failures or successes; empty when none is missing."""
    if not missing:
        return {}
    trials = _grouped([*results, *((task_id, success) for task_id in missing)])
    return {k: pass_hat_k_estimate(trials, k) for k in range(1, min(max_k, max(map(len, trials))) + 1)}


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
