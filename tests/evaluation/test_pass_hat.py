"""pass^k against enumeration and tau2's own code; intervals against simulation; summaries by hand."""

from __future__ import annotations

import itertools
import math
import os
import random

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.evaluation.intervals import clustered_interval, student_t_quantile
from tau2_lightning.evaluation.pass_hat import pass_hat_k, pass_hat_k_estimate
from tau2_lightning.evaluation.pass_hat_metric import PassHatK
from tau2_lightning.evaluation.summary import summarize
from tau2_lightning.trajectory import EpisodeOutcome

TABLES = st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=12)


def outcome(task_id: str, reward: float, **kwargs: object) -> EpisodeOutcome:
    values: dict[str, object] = {
        "task_id": task_id,
        "reward": reward,
        "termination_reason": "agent_stop",
        "turns": 4,
        "tool_calls": 3,
        "tool_errors": 0,
        "transferred": False,
        "transfer_expected": False,
        "user": "none",
    }
    return EpisodeOutcome(**(values | kwargs))  # type: ignore[arg-type]


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_hat_k_is_the_share_of_k_subsets_that_all_succeed(trials: list[bool], k: int) -> None:
    if k > len(trials):
        with pytest.raises(ValueError, match="cannot estimate"):
            pass_hat_k(len(trials), sum(trials), k)
        return
    subsets = list(itertools.combinations(trials, k))
    assert pass_hat_k(len(trials), sum(trials), k) == pytest.approx(sum(map(all, subsets)) / len(subsets))


@given(TABLES, st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_the_metric_agrees_with_the_function_in_any_order_and_split(table: list[list[bool]], k: int) -> None:
    flat = [(f"task {i}", float(trial)) for i, trials in enumerate(table) for trial in trials]
    random.Random(0).shuffle(flat)
    metric = PassHatK(k)
    for chunk in (flat[::2], flat[1::2]):
        metric.update([task for task, _ in chunk], torch.tensor([reward for _, reward in chunk]))
    expected = pass_hat_k_estimate(table, k).value
    assert float(metric.compute()) == pytest.approx(expected, nan_ok=True)


def test_pass_hat_k_is_unbiased() -> None:
    rng = random.Random(0)
    true = 0.6**3
    estimates = [pass_hat_k(5, sum(rng.random() < 0.6 for _ in range(5)), 3) for _ in range(40_000)]
    # Standard error of the mean is below 0.0015; the biased estimate (c/n)^3 would be off by 0.08.
    assert sum(estimates) / len(estimates) == pytest.approx(true, abs=0.006)


def test_agrees_with_tau2s_own_metric_code() -> None:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from tau2.metrics.agent_metrics import is_successful
    from tau2.metrics.agent_metrics import pass_hat_k as tau2_pass_hat_k

    rng = random.Random(1)
    for _ in range(200):
        n = rng.randint(1, 8)
        c, k = rng.randint(0, n), rng.randint(1, n)
        assert pass_hat_k(n, c, k) == tau2_pass_hat_k(n, c, k)
    metric = PassHatK(1)
    rewards = [1.0, 1 - 5e-7, 1 - 5e-6, 0.5, 0.0]
    for index, reward in enumerate(rewards):
        metric.update([str(index)], [reward])
    assert float(metric.compute()) == sum(map(is_successful, rewards)) / len(rewards)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (9, 2.26216), (39, 2.02269), (113, 1.98118)],
)
def test_student_t_quantiles_against_tables_and_closed_forms(degrees: int, expected: float) -> None:
    assert student_t_quantile(0.975, degrees) == pytest.approx(expected, abs=1e-4)
    for probability in (0.6, 0.9, 0.975, 0.999):
        centred = 2 * probability - 1
        assert student_t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * centred / 2), rel=1e-9)
        closed = centred * math.sqrt(2 / (1 - centred * centred))
        assert student_t_quantile(probability, 2) == pytest.approx(closed, rel=1e-9)
        assert student_t_quantile(probability, degrees) == pytest.approx(
            scipy.stats.t.ppf(probability, degrees), rel=1e-9
        )


@pytest.mark.parametrize("tasks", [20, 40])
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2.0, 2.0), (8.0, 1.0), (1.0, 20.0)])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_intervals_cover_the_truth(tasks: int, a: float, b: float, k: int) -> None:
    """Task difficulty is Beta(a, b), so the true pass^k is E[p^k] = prod (a + i) / (a + b + i)."""
    truth = math.prod((a + i) / (a + b + i) for i in range(k))
    rng = random.Random(tasks)
    runs, covered = 500, 0
    for _ in range(runs):
        table = []
        for _ in range(tasks):
            p = rng.betavariate(a, b)
            table.append([rng.random() < p for _ in range(4)])
        estimate = pass_hat_k_estimate(table, k)
        covered += estimate.low <= truth <= estimate.high
    # 95% nominal; the simulation's own standard error is 0.010. For rare events (truth below 1%) they may cover more.
    assert covered / runs >= 0.915


def test_naive_intervals_would_fail_the_coverage_check() -> None:
    """Negative control: treating every trial as independent covers far less than 95% when tasks differ."""
    rng, covered = random.Random(3), 0
    for _ in range(400):
        flat = []
        for _ in range(40):
            p = rng.betavariate(0.3, 0.3)
            flat += [float(rng.random() < p) for _ in range(4)]
        low, high = clustered_interval(flat, len(flat))
        covered += low <= 0.5 <= high
    assert covered / 400 < 0.85


def test_an_interval_at_one_is_not_a_point() -> None:
    estimate = pass_hat_k_estimate([[True] * 4] * 40, 1)
    assert estimate.value == estimate.high == 1.0 and 0.88 < estimate.low < 0.93
    assert pass_hat_k_estimate([], 1).tasks == 0 and math.isnan(pass_hat_k_estimate([], 1).value)


def test_summary_counts_what_a_single_number_hides() -> None:
    episodes = [
        outcome("a", 1.0, tool_calls=4, tool_errors=1, mistakes={"unknown_tool": 1}),
        outcome("a", 0.0, transferred=True, turns=2),
        outcome("b", 1.0, transferred=True, transfer_expected=True),
        outcome("b", 1.0, transferred=True, transfer_expected=True),
        outcome("c", 0.0, termination_reason="max_steps", mistakes={"unknown_tool": 2, "no_tool_call": 1}),
    ]
    summary = summarize(episodes, excluded={"engine:timeout": 2})
    assert summary.pass_hat[1].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert summary.pass_hat[2].value == pytest.approx((0 + 1) / 2) and summary.pass_hat[2].tasks == 2
    assert 3 not in summary.pass_hat
    assert summary.transfer_rate.value == pytest.approx((0.5 + 1 + 0) / 3)
    assert summary.needless_transfer_rate.value == pytest.approx(0.25)
    assert summary.pass_1_no_transfer.value == pytest.approx(0.25)
    assert summary.tool_error_rate == pytest.approx(1 / 16)
    assert summary.mistakes == {"no_tool_call": 1, "unknown_tool": 3}
    assert summary.terminations == {"agent_stop": 4, "max_steps": 1}
    flat = summary.as_scalars("val/")
    assert flat["val/excluded"] == 2 and flat["val/excluded/engine:timeout"] == 2 and flat["val/pass^1_low"] < 0.5


def test_an_empty_evaluation_has_no_scores_rather_than_zeros() -> None:
    summary = summarize([], excluded={"user:timeout": 3})
    assert summary.episodes == 0 and not summary.pass_hat and math.isnan(summary.mean_reward)
    assert summary.as_scalars() == {"episodes": 0.0, "excluded": 3.0, "excluded/user:timeout": 3.0}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        PassHatK(0)
    with pytest.raises(ValueError, match="task ids"):
        PassHatK(1).update(["a"], [1.0, 0.0])
