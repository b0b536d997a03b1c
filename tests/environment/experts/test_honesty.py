"""Every demonstration of a dialogue could have been played by an agent that knows only what it was told and has read.

The sample is quick; the whole of tau2's `base` splits, and of telecom's `full`, is slow.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

from tau2_lightning.environment import Demonstration, Playable, TaskRef, cross_check, load_tasks
from tau2_lightning.environment.demonstrations import _at_once, _follow, _gold_messages, demonstrate
from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.environment.experts.seen import unfounded
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.tasks import get_task
from tests.environment.helpers import unjudged

DOMAINS = ("retail", "airline", "telecom")
SAMPLE = 10
LEAST_SHARE = 0.95


@cache
def playable(domain: str) -> Playable:
    return Playable(unjudged(domain))


def sample(domain: str, size: int = SAMPLE, split: str = "base") -> list[TaskRef]:
    tasks = load_tasks(domain, split)
    return [task for task in tasks[:: max(1, len(tasks) // size)] if playable(domain).has(task)]


@cache
def play(task: TaskRef) -> tuple[Demonstration, Mapping[str, Any]]:
    return demonstrate(unjudged(task.domain), task, random.Random(0), 0.0, {})


def problems(made: Demonstration, domain: str) -> list[str]:
    return unfounded(made.messages, made.tools, plan_of(unjudged(domain)).policy)


def gold(task: TaskRef) -> list[dict[str, Any]]:
    """The messages of a replay of tau2's gold actions, as demonstrations of these domains once were."""
    settings = unjudged(task.domain)
    dialogue = Dialogue(task, settings, seed=1)
    _at_once(_follow(dialogue, (message for _, message in _gold_messages(get_task(task), False))))
    return dialogue.messages


def check(task: TaskRef) -> None:
    made, simulation = play(task)
    assert problems(made, task.domain) == [], task.task_id
    assert made.reward == 1.0 == cross_check(simulation, task, unjudged(task.domain)), task.task_id


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_sample_is_honest_and_earns_tau2s_reward(domain: str) -> None:
    tasks = sample(domain)
    assert len(tasks) >= 0.8 * SAMPLE
    for task in tasks:
        check(task)


@pytest.mark.slow
@pytest.mark.parametrize(("domain", "split"), [(domain, "base") for domain in DOMAINS] + [("telecom", "full")])
def test_all_are_honest_and_earn_tau2s_reward(domain: str, split: str) -> None:
    tasks = load_tasks(domain, split)
    played = [task for task in tasks if playable(domain).has(task)]
    assert len(played) >= LEAST_SHARE * len(tasks), playable(domain).left_out
    for task in played[:: 1 if split == "base" else 10]:  # `Playable` has checked honesty and reward of all
        check(task)


@pytest.mark.parametrize("domain", DOMAINS)
def test_replays_of_gold_actions_are_not_honest(domain: str) -> None:
    """The negative control: what was demonstrated before names people, orders and customers that nobody mentioned."""
    settings, tools = unjudged(domain), plan_of(unjudged(domain)).tool_schemas(False)
    named = {
        problem.split("=")[0]
        for task in sample(domain)
        for problem in unfounded(gold(task), tools, plan_of(settings).policy)
    }
    wanted = {
        "retail": {"find_user_id_by_name_zip.first_name", "find_user_id_by_name_zip.zip"},
        "airline": {"get_user_details.user_id"},
        "telecom": {"enable_roaming.customer_id", "enable_roaming.line_id"},
    }
    assert named & wanted[domain], named


@pytest.mark.parametrize("domain", ["retail", "airline"])
def test_a_planted_argument_is_found_wherever_it_stands(domain: str) -> None:
    tried = 0
    for task in sample(domain, 4):
        made, _ = play(task)
        for messages in planted(made.messages):
            assert len(unfounded(messages, made.tools, plan_of(unjudged(domain)).policy)) == 1
            tried += 1
    assert tried > 20


def planted(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The dialogue with one text argument of one call exchanged for something that nobody mentioned."""
    for number, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            arguments = json.loads(call["function"]["arguments"])
            for name, value in arguments.items():
                if isinstance(value, str) and name not in ("expression", "summary"):
                    changed = copy.deepcopy(messages)
                    function = changed[number]["tool_calls"][0]["function"]
                    function["arguments"] = json.dumps({**arguments, name: "#W7777777"})
                    yield changed


@pytest.mark.parametrize("domain", DOMAINS)
def test_without_the_users_answer_the_first_look_up_has_no_source(domain: str) -> None:
    for task in sample(domain, 4):
        made, _ = play(task)
        silent = [{**m, "content": ""} if m["role"] == "user" else m for m in made.messages]
        assert unfounded(silent, made.tools, plan_of(unjudged(domain)).policy), task.task_id
