"""Rank 0 validates several domains at the same time: each with its own results, kept attempts and failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.algorithm import GRPO
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.errors import NothingPlayed, TooManyFaults
from tau2_lightning.evaluation.plan import ValidationPlan
from tau2_lightning.rollout.collect.validation import Part, PlayedPart
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout_files.played import PlayedValidation
from tests.fake_service import FakeService, data_with, small_config

WORDS = ("domain=[mock,airline,retail]", "econfig.user=scripted", "econfig.solo_mode=false")


class Service(FakeService):
    """A service of which one domain, ``bad``, comes to something else."""

    def __init__(self, bad: str = "", becomes: Callable[[PlayedPart], PlayedPart] = lambda part: part) -> None:
        super().__init__()
        self.bad, self.becomes = bad, becomes
        self.asked: list[Sequence[Part]] = []

    def evaluate(self, parts: Sequence[Part]) -> list[PlayedPart]:
        self.asked.append(parts)
        return super().evaluate(parts)

    def validated(self, part: Part) -> PlayedPart:
        played = super().validated(part)
        return self.becomes(played) if part.domain == self.bad else played


def attempt(domain: str, purpose: str = "validate") -> FailedAttempt:
    return FailedAttempt(purpose, "a", domain, "0", 0, 0, "user:http_500", "", final=False)


def validation(service: FakeService, tmp_path: Path, *words: str) -> tuple[Tau2DataModule, ValidationPlan, list[Any]]:
    config = small_config(*WORDS, "valid_dataset.limit=2", "valid_dataset.num_trials=1", *words)
    data = data_with(service, config, "nowhere", GRPO(), tmp_path)
    (plan,) = data.val_dataloader()
    told: list[Any] = []
    data.rollouts.played.append(told.append)
    return data, plan, told


def test_all_are_asked_for_at_once_and_attempts_go_to_their_domain(tmp_path: Path) -> None:
    service = Service()
    service.failed = [attempt("retail"), attempt("mock"), attempt("retail"), attempt("mock", "train")]
    words = (
        "valid_dataset.timeout=50",
        "domains.retail.valid_dataset.timeout=70",
        "domains.retail.valid_dataset.top_p=0.5",
    )
    data, plan, told = validation(service, tmp_path, *words)
    payload = data.rollouts.evaluate(plan)
    (parts,) = service.asked
    assert [part.domain for part in parts] == ["mock", "airline", "retail"]
    assert [(part.timeout, dict(part.sampling)) for part in parts] == [(50, {}), (50, {}), (70, {"top_p": 0.5})]
    assert all(isinstance(one, PlayedValidation) for one in told)
    assert [(one.domain, len(one.rollouts), len(one.failed)) for one in told] == [
        ("mock", 2, 1), ("airline", 2, 0), ("retail", 2, 2),
    ]  # fmt: skip
    assert [one.purpose for one in service.failed] == ["train"], "those of training stay"
    assert {one.number for one in told} == {1} and [one.number for one in data.evaluations] == [1, 1, 1]
    for domain in ("mock", "airline", "retail"):
        assert payload["metrics"][f"eval/{domain}/test/pass^1"] == 1.0
    assert payload["metrics"]["eval/macro/pass^1"] == 1.0


@pytest.mark.parametrize(
    ("becomes", "error", "kept"),
    [
        (lambda part: PlayedPart([], Counter({"user:http_500": 2})), NothingPlayed, 0),
        (lambda part: PlayedPart(part.rollouts[:1], Counter(), TooManyFaults("1 of 2")), TooManyFaults, 1),
        (lambda part: PlayedPart([], Counter(), ZeroDivisionError("a defect")), ZeroDivisionError, 0),
    ],
)
@pytest.mark.parametrize("bad", ["mock", "airline", "retail"])
def test_a_failure_is_raised_and_loses_nothing_of_the_others(
    bad: str, becomes: Any, error: type[Exception], kept: int, tmp_path: Path
) -> None:
    service = Service(bad, becomes)
    data, plan, told = validation(service, tmp_path)
    with pytest.raises(error):
        data.rollouts.evaluate(plan)
    others = [domain for domain in ("mock", "airline", "retail") if domain != bad]
    assert [one.domain for one in data.evaluations] == others
    assert all(one.scalars()[f"eval/{one.domain}/test/pass^1"] == 1.0 for one in data.evaluations)
    assert {one.domain: len(one.rollouts) for one in told} == {bad: kept} | dict.fromkeys(others, 2)


def test_a_service_that_breaks_hands_over_what_there_is(tmp_path: Path) -> None:
    class Broken(Service):
        def evaluate(self, parts: Sequence[Part]) -> list[PlayedPart]:
            raise KeyboardInterrupt

    service = Broken()
    service.failed = [attempt("airline")]
    data, plan, told = validation(service, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        data.rollouts.evaluate(plan)
    assert [(one.domain, len(one.rollouts), len(one.failed)) for one in told] == [
        ("mock", 0, 0), ("airline", 0, 1), ("retail", 0, 0),
    ]  # fmt: skip
    assert data.evaluations == []
