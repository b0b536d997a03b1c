"""C4: a run or validation in which nothing was played shows no number, and stops with exit code 1 and the cause."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import train
from tau2_lightning.errors import NothingPlayed, TooManyFaults
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout.collect.played import check_collection, check_evaluation
from tau2_lightning.rollout.collect.validation import Part, PlayedPart
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tau2_lightning.telemetry.step_metrics import rollout_metrics
from tau2_lightning.trajectory import Group
from tests.cases.foreign import stage
from tests.cases.test_a23_rate_limited_user import TASK, collector, settings
from tests.environment.broken_server import broken
from tests.fake_service import FakeService, group

CAUSES = {"500": "user:http_500", "html": "user:bad_reply", "no_choices": "user:bad_reply", "hang": "user:timeout"}


@pytest.mark.parametrize("kind", CAUSES)
async def test_c04_a_useless_user_excludes_every_episode_by_its_cause(kind: str) -> None:
    async with broken(kind) as (_, url):
        world = settings(url, max_retries=0, deadline_s=0.5 if kind == "hang" else 20.0)
        rollouts, excluded = await collector(world, timeout=20.0, retries=0).evaluate([TASK], 3, deadline=30.0)
    assert excluded == {CAUSES[kind]: 3}
    with pytest.raises(NothingPlayed, match=f"validation of telecom .*excluded: {CAUSES[kind]} 3"):
        check_evaluation(rollouts, excluded, "telecom")


async def test_c04_an_agent_that_never_calls_the_model() -> None:
    async def idle(client: Any, data: Any) -> float:
        return 1.0

    async with stage(idle) as at:
        collection = await at.collect()
        with pytest.raises(NothingPlayed, match="excluded: session:no_turn 2"):
            check_collection(collection)
        assert "reward/mean" not in rollout_metrics(collection, 1.0)
    async with stage(idle, max_fault_fraction=0.5) as at:
        with pytest.raises(TooManyFaults, match="session:no_turn"):
            await at.collect()


class Lost(FakeService):
    """A service that plays nothing: in validations (``validates``), or in training."""

    def __init__(self, *, validates: bool) -> None:
        super().__init__([group(0, [1.0, 0.0, 0.0, 1.0])])
        self.validates = validates

    def validated(self, part: Part) -> PlayedPart:
        return super().validated(part) if self.validates else PlayedPart([], Counter({"user:http_500": 7}))

    def collect(self, tasks: Any, plan: Any) -> Collection:
        super().collect(tasks, plan)
        return Collection((), lost=1, excluded=Counter({"user:timeout": 4}))


class Altered(FakeService):
    """A service whose episodes were sampled by another distribution than the trainer's."""

    def collect(self, tasks: Any, plan: Any) -> Collection:
        collection = super().collect(tasks, plan)
        return replace(collection, groups=tuple(map(_altered, collection.groups)))


def _altered(one: Group) -> Group:
    rollouts = []
    for rollout in one.rollouts:
        rows = tuple(
            replace(row, turns=tuple(replace(turn, altered="temperature=0.7") for turn in row.turns))
            for row in rollout.trajectories
        )
        rollouts.append(replace(rollout, trajectories=rows))
    return replace(one, rollouts=tuple(rollouts))


@pytest.mark.parametrize(
    ("service", "told"),
    [
        (Lost(validates=False), "no episode of the validation of mock was finished.*user:http_500 7"),
        (Lost(validates=True), "no group of this batch has two finished episodes.*user:timeout 4"),
        (Altered([group(0, [1.0, 0.0, 0.0, 1.0])]), "none of the 1 groups .* has a token to train on.*temperature"),
    ],
)
def test_c04_the_run_ends_with_exit_code_1_and_logs_no_number(
    service: FakeService,
    told: str,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)
    monkeypatch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: service)
    config = load_config(
        [
            "domain=mock", f"actor.path={policy}", "actor=tiny", "actor.ppo_n_minibatches=1", "logger=csv",
            "gconfig.n_samples=4", "train_dataset.batch_size=1", "trainer.progress=off", "trainer.accelerator=cpu",
            f"output_dir={tmp_path}", "experiment_name=e", "trial_name=t", "~callbacks.results",
        ],
        check=False,
    )  # fmt: skip
    assert exit_code(lambda: train.run(config)) == 1
    shown = capsys.readouterr().err
    assert re.search(told, shown, re.S), shown
    metrics = "\n".join(path.read_text() for path in tmp_path.rglob("metrics.csv"))
    assert "reward/mean" not in metrics
    assert not (tmp_path / "e" / "t" / "report.json").exists()


def test_c04_what_was_played_in_part_goes_on() -> None:
    """Negative control."""
    check_collection(Collection((group(0, [1.0, 0.0]),), excluded=Counter({"user:timeout": 1})))
    check_collection(Collection(()))
    check_evaluation(list(group(0, [1.0]).rollouts), {"user:timeout": 1}, "mock")
