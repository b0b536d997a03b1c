"""Scores: gold solutions earn 1.0; cross-checks raise when scores differ, and skip what tau2 itself cannot score."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stock_tau2 import parsed_once
from tau2_lightning.environment import (
    EnvironmentSettings,
    ScoreMismatch,
    cross_check,
    load_tasks,
    official_reward,
    write_results,
)
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.environment.demonstrations import _at_once, _follow, _gold_messages
from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.environment.end_states import by_differences
from tau2_lightning.environment.knowledge import OFFLINE
from tau2_lightning.environment.scoring import official_reward_info, plan_of, tau2_can_score
from tau2_lightning.environment.tasks import get_task
from tau2_lightning.errors import InfrastructureFault
from tests.environment.helpers import (
    banking,
    calls,
    first_task,
    nvidia_only,
    play,
    scripted,
    solo,
    unjudged,
    upstream_only,
)


def play_gold(task: Any, settings: EnvironmentSettings) -> Dialogue:
    dialogue = Dialogue(task, settings, seed=1)
    _at_once(_follow(dialogue, (message for _, message in _gold_messages(get_task(task), settings.solo_mode))))
    return dialogue


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(solo(), id="telecom-solo"),
        pytest.param(scripted("telecom"), id="telecom-dual"),
        pytest.param(unjudged("retail"), id="retail"),
        pytest.param(scripted("airline"), id="airline"),
        *[pytest.param(banking(config), id=config, marks=upstream_only) for config in OFFLINE],
    ],
)
def test_gold_earns_the_reward_by_the_fast_and_the_official_score(settings: EnvironmentSettings) -> None:
    for task in load_tasks(settings.domain, "test", solo_mode=settings.solo_mode)[:2]:
        outcome = play_gold(task, settings).outcome()
        assert outcome.reward == official_reward(outcome.simulation, task, settings) == 1.0


@pytest.mark.parametrize("modes_differ", [False, True])
def test_databases_are_compared_as_tau2_does_also_when_modes_have_other_records(
    modes_differ: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences from the shared records are compared, or tau2's hashes if the gold environment shares others."""
    plan = blueprint("telecom", True)
    assert plan.shared is not None
    if modes_differ:
        monkeypatch.setattr(plan.shared, "digest", "of something else")
    assert by_differences(plan) is not modes_differ
    found = []
    for task in load_tasks("telecom", "test", solo_mode=True)[:3]:
        messages = [message for _, message in _gold_messages(get_task(task), True)]
        for replies in (messages, messages[-1:]):
            dialogue = Dialogue(task, solo(), seed=1)
            _at_once(_follow(dialogue, iter(replies)))
            run = dialogue.outcome().simulation
            official = official_reward_info(api.SimulationRun.model_validate(run), get_task(task), solo())
            assert run["reward_info"] == official.model_dump(mode="json")
            found.append(official.db_check.db_match)
    assert set(found) == {True, False}


@pytest.fixture
def parsed_files() -> Iterator[None]:
    with parsed_once():
        yield


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the official score of 2285 tasks
@pytest.mark.parametrize(
    ("settings", "split", "count"),
    [
        pytest.param(solo(), "full", 2285, id="telecom-solo"),
        pytest.param(scripted("telecom"), "base", 114, id="telecom-dual"),
        pytest.param(unjudged("retail"), "base", 114, id="retail"),
        pytest.param(scripted("airline"), "base", 50, id="airline"),
        pytest.param(banking("golden_retrieval"), "base", 97, id="banking", marks=upstream_only),
    ],
)
def test_gold_earns_the_reward_on_every_task(
    settings: EnvironmentSettings, split: str, count: int, parsed_files: None
) -> None:
    """Both the fast score and tau2's evaluator, which builds its own environments, must give the reward."""
    rewards: Counter[tuple[float, float]] = Counter()
    for task in load_tasks(settings.domain, split, solo_mode=settings.solo_mode):
        outcome = play_gold(task, settings).outcome()
        rewards[outcome.reward, official_reward(outcome.simulation, task, settings)] += 1
    plan_of(settings).verify_pristine()
    assert rewards == {(1.0, 1.0): count}


def test_a_wrong_reward_is_a_mismatch_with_the_episode_in_hand() -> None:
    task, settings = first_task(), solo()
    simulation = copy.deepcopy(dict(play_gold(task, settings).outcome().simulation))
    assert cross_check(simulation, task, settings) == 1.0
    simulation["reward_info"]["reward"] = 0.0
    with pytest.raises(ScoreMismatch) as caught:
        cross_check(simulation, task, settings)
    assert (caught.value.ours, caught.value.official) == (0.0, 1.0) and caught.value.simulation is simulation


def test_a_tampered_tool_result_is_a_fault_and_not_excused() -> None:
    task, settings = first_task(), solo()
    simulation = copy.deepcopy(dict(play_gold(task, settings).outcome().simulation))
    next(m for m in simulation["messages"] if m["role"] == "tool")["content"] = "something else"
    with pytest.raises(InfrastructureFault, match="replay"):
        cross_check(simulation, task, settings)


async def _reads_a_random_bill_id(settings: EnvironmentSettings) -> Any:
    db = blueprint("telecom", True).environment().tools.db
    drafts = {bill.customer_id for bill in db.bills if bill.status == "Draft"}
    active = {line.line_id for line in db.lines if line.status == "Active"}
    customer = next(c for c in db.customers if c.customer_id not in drafts and active & set(c.line_ids))
    line = next(line_id for line_id in customer.line_ids if line_id in active)
    ids = {"customer_id": customer.customer_id}
    refuel = calls(("refuel_data", {**ids, "line_id": line, "gb_amount": 2.0}))
    task = next(t for t in load_tasks("telecom", "train", solo_mode=True) if t.stratum.startswith("mobile_data"))
    moves = [refuel, calls(("get_customer_by_id", ids)), calls(("done", {}))]
    return task, (await play(task, settings, moves)).outcome()


async def test_an_episode_that_tau2_cannot_replay_is_told_apart_from_a_bug() -> None:
    """telecom makes up the id of a new bill, so a replay gives another. Upstream replays no calls that only read."""
    settings = solo()
    task, outcome = await _reads_a_random_bill_id(settings)
    if api.IS_UPSTREAM:
        assert tau2_can_score(outcome.simulation, task, settings)
        assert cross_check(outcome.simulation, task, settings) == outcome.reward
        return
    with pytest.raises(InfrastructureFault, match="replay"):
        official_reward(outcome.simulation, task, settings)
    assert not tau2_can_score(outcome.simulation, task, settings)
    assert cross_check(outcome.simulation, task, settings) is None


@nvidia_only
async def test_results_that_tau2_cannot_regrade_are_kept_apart(tmp_path: Path) -> None:
    from tau2.data_model.simulation import Results

    settings = solo()
    task, random_id = await _reads_a_random_bill_id(settings)
    good = play_gold(task, settings).outcome()
    path = write_results(tmp_path / "r.json", [random_id, good], settings, agent="tiny", num_trials=2)
    assert [s.reward_info.reward for s in Results.load(path).simulations] == [1.0]
    apart = Results.load(tmp_path / "r.not_replayable.json").simulations
    assert [s.task_id for s in apart] == [task.task_id]


async def _breaks_an_assertion(domain: str) -> Any:
    """Play an episode whose assertion raises: in mock its task is missing, in telecom access points are a list."""
    tasks = load_tasks(domain, "base", solo_mode=True)
    if domain == "mock":
        task, moves = next(t for t in tasks if t.task_id.endswith("env_assertions")), []
    else:
        task = next(t for t in tasks if t.task_id.startswith("[mms_issue]") and not t.transfer_expected)
        # The replacement comes last, because other calls fail once the access points are a list.
        gold = [a for a in get_task(task).evaluation_criteria.actions if "apn" not in a.name]
        moves = [calls((a.name, a.arguments)) for a in gold]
        moves.append(calls(("set_apn_settings", {"apn_settings": ["x"]})))
    return task, (await play(task, solo(domain), [*moves, calls(("done", {}))])).outcome()


@pytest.mark.parametrize("domain", ["mock", "telecom"])
async def test_an_assertion_that_raises_is_an_unmet_one(domain: str, tmp_path: Path) -> None:
    """tau2's evaluator raises here, and its tools would then reject the whole file."""
    task, outcome = await _breaks_an_assertion(domain)
    assert outcome.reward == 0.0 and outcome.termination_reason == "agent_stop"
    with pytest.raises(InfrastructureFault, match="replay"):
        official_reward(outcome.simulation, task, solo(domain))
    assert cross_check(outcome.simulation, task, solo(domain)) is None
    good = play_gold(task, solo(domain)).outcome()
    path = write_results(tmp_path / "r.json", [good, outcome], solo(domain), agent="tiny", num_trials=2)
    assert len(json.loads(path.read_text())["simulations"]) == 1
    assert len(json.loads((tmp_path / "r.not_replayable.json").read_text())["simulations"]) == 1
