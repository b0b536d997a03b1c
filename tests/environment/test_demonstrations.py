"""Demonstrations: the expert solves every task, an expert that forgets steps earns less, rewards are tau2's."""

from __future__ import annotations

import json
import random

import pytest

from tau2_lightning.environment import demonstrations, generate_demonstrations, load_tasks
from tau2_lightning.environment.demonstrations import demonstrate
from tau2_lightning.errors import ConfigError
from tests.environment.helpers import solo, unjudged

TICKET = solo(policy="ticket")


@pytest.mark.parametrize("share", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_the_expert_that_forgets_nothing_solves_every_test_task(share: int) -> None:
    for task in load_tasks("telecom", "test", solo_mode=True)[::share]:
        made, _ = demonstrate(TICKET, task, random.Random(0), 0.0, {})
        assert made.reward == 1.0, task.task_id


def test_forgetting_costs_reward_and_keeps_the_checks() -> None:
    tasks = load_tasks("telecom", "train", solo_mode=True)
    never = generate_demonstrations(TICKET, tasks, 15, 3, skip=0.0)
    often = generate_demonstrations(TICKET, tasks, 15, 3, skip=0.8)
    assert sum(d.reward for d in never) == 15 > sum(d.reward for d in often)
    assert all("check_network_status" in json.dumps(d.messages) for d in often)


def test_one_skill_can_be_forgotten_alone_with_what_depends_on_it() -> None:
    tasks = load_tasks("telecom", "train", solo_mode=True)
    made = generate_demonstrations(TICKET, tasks, 25, 1, skip=0.0, skip_by_skill={"send_payment_request": 1.0})
    text = json.dumps([d.messages for d in made])
    assert "send_payment_request" not in text and '"make_payment"' not in text and "toggle_data" in text


def test_demonstrations_are_deterministic_openai_messages() -> None:
    tasks = load_tasks("telecom", "train", solo_mode=True)
    first, second = (generate_demonstrations(TICKET, tasks, 10, 7) for _ in range(2))
    assert [d.messages for d in first] == [d.messages for d in second]
    assert first[0].tools is second[5].tools
    for made in first:
        assert made.messages[0]["role"] == "user" and made.messages[-1]["role"] == "assistant"
        ids = [call["id"] for m in made.messages for call in m.get("tool_calls") or ()]
        answered = [m["tool_call_id"] for m in made.messages if m["role"] == "tool"]
        assert answered == ids[:-1] and made.messages[-1]["tool_calls"][0]["function"]["name"] == "done"


def test_required_reward_filters_and_impossible_demands_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = load_tasks("telecom", "train", solo_mode=True)
    kept = generate_demonstrations(TICKET, tasks, 10, 2, skip=0.5, require_reward=1.0)
    assert {d.reward for d in kept} == {1.0}
    service = [task for task in tasks if task.stratum.startswith("mobile_data") and not task.transfer_expected]
    monkeypatch.setattr(demonstrations, "MAX_TRIES", 2)
    with pytest.raises(ConfigError, match="require_reward"):
        generate_demonstrations(TICKET, service, 5, 2, skip=1.0, require_reward=1.0)


def test_gold_demonstrations_with_the_scripted_user_earn_the_reward() -> None:
    # In this task of upstream the user reads notifications unasked, but the scripted user only follows requests.
    tasks = [task for task in load_tasks("mock", "train")[:6] if task.task_id != "update_task_with_user_tools"]
    settings = unjudged("mock")
    for task in tasks:
        made, _ = demonstrate(settings, task, random.Random(0), 0.0, {})
        assert made.reward == 1.0, task.task_id


def test_a_share_is_scored_officially() -> None:
    made = generate_demonstrations(TICKET, load_tasks("telecom", "train", solo_mode=True), 10, 2, official_share=0.5)
    assert [d.official for d in made] == [True, False] * 5


def test_no_tasks_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no tasks"):
        generate_demonstrations(TICKET, (), 1, 0)
