"""Evaluations of several seeds: mean and interval over the runs, by hand."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from tau2_lightning.evaluation.pooled import OverRuns, Pool
from tau2_lightning.evaluation.recorded import Recorded

STAMP = {"tau2": "26.3", "digest": "aa"}


def recorded(solved: int, domain: str = "mock", stamp: dict[str, str] | None = None) -> Recorded:
    """Ten tasks with two trials each; the first ``solved`` are solved twice."""
    trials = {str(n): (2 if n < solved else 0, 2) for n in range(10)}
    return Recorded("r", domain, STAMP if stamp is None else stamp, trials)


def run(before: int, after: int) -> dict[str, dict[str, Recorded]]:
    return {"before": {"mock": recorded(before)}, "after": {"mock": recorded(after)}}


def shown(pool: Pool) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(pool.table())
    file = console.file
    assert isinstance(file, io.StringIO)
    return " ".join(file.getvalue().split())


def test_the_interval_is_students_over_the_runs() -> None:
    values = OverRuns((0.2, 0.4, 0.6))
    low, high = values.interval
    assert values.mean == pytest.approx(0.4)
    assert high - 0.4 == pytest.approx(4.302653 * 0.2 / math.sqrt(3)) and 0.4 - low == pytest.approx(high - 0.4)
    assert values.text() == f"0.400 [{low:.3f}, {high:.3f}]"


def test_one_run_has_no_interval_and_none_has_no_mean() -> None:
    assert OverRuns((0.5,)).text("+") == "+0.500" and OverRuns((0.5,)).payload()["low"] is None
    assert OverRuns(()).text() == "-" and OverRuns(()).payload()["mean"] is None


def test_before_after_and_the_change_within_each_run_are_pooled() -> None:
    pool = Pool("", {"a": run(1, 4), "b": run(3, 6), "c": run(2, 8)})
    row = pool.rows("mock")[1]
    assert row["before"].values == (0.1, 0.3, 0.2) and row["after"].mean == pytest.approx(0.6)
    assert row["change"].values == pytest.approx((0.3, 0.3, 0.6))
    assert set(pool.rows("mock")) == {1, 2}
    text = shown(pool)
    assert "mean over 3 runs, 95% interval over runs" in text and "score" not in text
    assert "pass^1 of c │ 0.200 │ 0.800 │ +0.600" in text and "NOT COMPARABLE" not in text
    content = pool.payload()["domains"]["mock"]["pass_hat"]["pass^1"]
    assert content["change"]["values"] == pytest.approx([0.3, 0.3, 0.6]) and "score" not in content


def test_runs_that_have_not_ended_are_named_and_counted() -> None:
    pool = Pool("algorithm=grpo", {"a": run(1, 4), "b": {}})
    text = shown(pool)
    assert "mean over 1 of 2 runs" in text and "b: has not ended" in text and "algorithm=grpo" in text
    assert pool.payload()["ended"] == ["a"] and pool.payload()["runs"] == ["a", "b"]
    assert "mean over 0 of 1 runs" in shown(Pool("", {"a": {}}))


def test_runs_of_other_worlds_have_no_common_mean_without_a_word() -> None:
    other = {"after": {"mock": recorded(4, stamp={"tau2": "99", "digest": "bb"})}}
    assert "NOT COMPARABLE, stamps differ in tau2" in shown(Pool("", {"a": run(1, 4), "b": other}))


def test_domains_stay_apart() -> None:
    one = {"score": {"mock": recorded(2), "retail": recorded(5, "retail")}}
    text = shown(Pool("", {"a": one, "b": one}))
    assert "mock pass^1 │ 0.200 [0.200, 0.200]" in text and "retail pass^1 of b │ 0.500" in text
