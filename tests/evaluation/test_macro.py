"""The mean over domains counts each domain once and combines their intervals."""

from __future__ import annotations

import math

import pytest

from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.intervals import Estimate
from tau2_lightning.evaluation.macro import macro_pass_hat, macro_scalars, mean_over_domains, payload_of_all
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import Rollout

CONFIG = load_config(["domain=retail"], check=False)


def evaluation(domain: str, tasks: int, solved: int, trials: int = 1) -> Evaluation:
    """``solved`` of ``tasks`` tasks are solved in every trial."""
    rollouts = [Rollout(str(i), "0", t, float(i < solved), ()) for i in range(tasks) for t in range(trials)]
    return Evaluation.of(domain, "test", trials, rollouts, {}, CONFIG)


def test_a_small_domain_counts_as_much_as_a_large_one() -> None:
    both = [evaluation("airline", 4, 4, trials=2), evaluation("retail", 40, 0)]
    (k,) = macro_pass_hat(both)
    assert k == 1, "pass^2 of airline has no counterpart"
    found = macro_pass_hat(both)[1]
    assert found.value == 0.5 and found.tasks == 44 and 0 < found.low < 0.5 < found.high < 1
    scalars = macro_scalars(both)
    assert scalars["eval/macro/pass^1"] == 0.5 == scalars["eval/macro/mean_reward"]
    assert macro_scalars(both[:1]) == {}


def test_the_interval_is_that_of_independent_estimates() -> None:
    one = mean_over_domains([Estimate(0.5, 0.4, 0.6, 10)] * 4)
    assert [one.low, one.high] == pytest.approx([0.45, 0.55]), "four domains: half as wide as one"
    assert mean_over_domains([Estimate(0.5, 0.3, 0.9, 9)]) == Estimate(0.5, 0.3, 0.9, 9)
    low, high = Estimate(0.1, 0.0, 0.5, 5), Estimate(0.9, 0.6, 1.0, 5)
    both = mean_over_domains([low, high])
    assert both.low == pytest.approx(0.5 - math.hypot(0.1, 0.3) / 2)
    assert both.high == pytest.approx(0.5 + math.hypot(0.4, 0.1) / 2)


def test_the_payload_of_several_domains_holds_each_and_their_mean() -> None:
    both = [evaluation("airline", 4, 4), evaluation("retail", 8, 2)]
    payload = payload_of_all(both)
    assert payload["domain"] == "airline+retail"
    metrics = payload["metrics"]
    assert metrics["eval/airline/test/pass^1"] == 1.0 and metrics["eval/retail/test/pass^1"] == 0.25
    assert metrics["eval/macro/pass^1"] == 0.625
    assert payload["domains"]["retail"]["trials"]["0"] == [1, 1]
    assert payload_of_all(both[:1]) == both[0].payload()


def test_without_an_estimate_of_each_domain_there_is_no_mean() -> None:
    none = Estimate(math.nan, math.nan, math.nan, 0)
    for found in (mean_over_domains([none, Estimate(0.5, 0.4, 0.6, 3)]), mean_over_domains([])):
        assert found.tasks == 0 and all(map(math.isnan, (found.value, found.low, found.high)))
