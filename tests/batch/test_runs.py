"""Runs of neighbouring rows: budgets hold, nothing is lost, and tokens that neighbours share count once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.batch.runs import even_runs, plan_runs


def cost(run: list[int], lengths: list[int], shared: list[int]) -> int:
    return sum(lengths[i] - (shared[i] if i != run[0] else 0) for i in run)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    lengths = draw(st.lists(st.integers(1, 60), max_size=25))
    shared = [0, *(draw(st.integers(0, min(pair))) for pair in pairwise(lengths))]
    return lengths, shared[: len(lengths)]


@given(rows(), st.integers(1, 100), st.integers(0, 4))
def test_runs_hold_the_budget_and_every_row_once(of: tuple[list[int], list[int]], budget: int, more: int) -> None:
    lengths, shared = of
    plan = plan_runs(lengths, shared, budget)
    assert [i for run in plan for i in run] == list(range(len(lengths)))
    assert all(len(run) == 1 or cost(run, lengths, shared) <= budget for run in plan)
    wider = plan_runs(lengths, shared, budget, len(plan) + more)
    assert len(wider) == len(plan) + more and [i for run in wider for i in run] == list(range(len(lengths)))
    most = [max((cost(run, lengths, shared) for run in runs if run), default=0) for runs in (plan, wider)]
    assert most[1] <= most[0]
    if plan:
        with pytest.raises(ValueError, match="were asked for"):
            plan_runs(lengths, shared, budget, len(plan) - 1)


@given(rows(), st.integers(1, 5))
def test_even_runs_have_the_cheapest_largest_run(given_rows: tuple[list[int], list[int]], count: int) -> None:
    lengths, shared = given_rows
    best = even_runs(lengths, shared, count)
    largest = max((cost(run, lengths, shared) for run in best if run), default=0)
    if lengths and largest > max(lengths):
        assert len(plan_runs(lengths, shared, largest - 1)) > count, "a smaller limit was enough"


def test_neighbours_that_share_a_prefix_stay_together() -> None:
    lengths, shared = [100, 100, 100, 100], [0, 90, 0, 90]
    assert plan_runs(lengths, shared, 115) == [[0, 1], [2, 3]]
    assert even_runs(lengths, shared, 2) == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="max_tokens_per_mb=0"):
        plan_runs(lengths, shared, 0)


def test_more_runs_than_needed_are_filled_only_where_that_repeats_little() -> None:
    lengths = [100, 100, 100, 100]
    assert plan_runs(lengths, [0, 90, 90, 90], 200, 2) == [[0, 1, 2, 3], []]
    assert plan_runs(lengths, [0, 10, 10, 10], 400, 2) == [[0, 1], [2, 3]]
    assert plan_runs(lengths, [0, 0, 0, 0], 400, 4) == [[0], [1], [2], [3]]
