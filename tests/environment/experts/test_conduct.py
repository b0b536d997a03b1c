"""How the experts behave: they ask who is calling, do one thing at a time, confirm changes, and say goodbye."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from tau2_lightning.environment import Demonstration, Playable, generate_demonstrations, load_tasks
from tau2_lightning.environment.demonstrations import demonstrate
from tau2_lightning.environment.experts.seen import _leaves
from tau2_lightning.environment.experts.turns import HOLD_ON, LeftOut
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.tasks import find_task
from tau2_lightning.errors import ConfigError
from tests.environment.experts.test_honesty import DOMAINS, play, sample
from tests.environment.helpers import unjudged

Turn = tuple[str, Any]
LOOK_UPS = ("find_user_id_by_email", "find_user_id_by_name_zip", "get_user_details", "get_customer_by_phone")


def turns(made: Demonstration) -> list[Turn]:
    """The agent's turns: ("says", text) or (tool, arguments)."""
    found: list[Turn] = []
    for message in made.messages:
        if message["role"] == "assistant":
            calls = message.get("tool_calls") or []
            assert len(calls) <= 1 and not (calls and message["content"]), "one thing at a time, as the policies say"
            function = calls[0]["function"] if calls else None
            found.append(
                (function["name"], json.loads(function["arguments"])) if function else ("says", message["content"])
            )
    return found


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_asks_who_is_calling_before_it_looks_anything_up(domain: str) -> None:
    for task in sample(domain, 5):
        made = turns(play(task)[0])
        first = next(name for name, _ in made if name != "says")
        asked = [text for name, text in made[: [name for name, _ in made].index(first)] if name == "says"]
        assert (first in LOOK_UPS and "?" in asked[-1] and "your account" in asked[-1]) or "user id" in asked[-1]


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_change_is_stated_and_confirmed_right_before_it_is_made(domain: str) -> None:
    types, changes = plan_of(unjudged(domain)).tool_types, 0
    for task in sample(domain):
        made = play(task)[0]
        for before, (name, arguments) in zip(turns(made), turns(made)[1:], strict=False):
            if name != "says" and types[name].value == "write":
                changes += 1
                assert before[0] == "says" and before[1].endswith("Do you confirm this (yes/no)?")
                if domain != "telecom":
                    assert all(str(value) in before[1] for _, value in _leaves(arguments)), before[1]
        confirmed = [m["content"] for m in made.messages if m["role"] == "user"]
        assert all("Yes, please go ahead." not in text or text == "Yes, please go ahead." for text in confirmed)
    assert changes >= 5


@pytest.mark.parametrize("domain", DOMAINS)
def test_it_ends_the_talk_itself(domain: str) -> None:
    for task in sample(domain, 5):
        made = play(task)[0]
        assert "Goodbye!" in made.messages[-1]["content"] or made.messages[-1]["content"] == HOLD_ON


def test_a_transfer_is_made_as_the_policy_says() -> None:
    made = turns(play(find_task("retail", "50"))[0])
    assert made[-2][0] == "transfer_to_human_agents" and made[-1] == ("says", HOLD_ON)
    assert "undo" in made[-2][1]["summary"]


def test_in_dual_control_the_phone_is_in_the_users_hands() -> None:
    task = next(task for task in load_tasks("telecom", "train") if "user_abroad" in task.task_id)
    made = play(task)[0]
    said = [text for name, text in turns(made) if name == "says"]
    assert any("check_network_status({})" in text for text in said)
    answers = [m["content"] for m in made.messages if m["role"] == "user"]
    assert any(answer.startswith("I did that. ") for answer in answers)


def test_a_forgetful_expert_leaves_changes_out_and_earns_less() -> None:
    tasks = sample("retail", 8)
    never = generate_demonstrations(unjudged("retail"), tasks, 8, 3, skip=0.0)
    chances = dict.fromkeys((name for name, kind in _types("retail").items() if kind == "write"), 1.0)
    always = generate_demonstrations(unjudged("retail"), tasks, 8, 3, skip=0.0, skip_by_skill=chances)
    assert sum(made.reward for made in never) == 8.0 > sum(made.reward for made in always)
    names = {name for made in always for name, _ in turns(made)}
    assert not names & set(chances) and "get_user_details" in names, "look-ups are never left out"


def _types(domain: str) -> dict[str, str]:
    return {name: kind.value for name, kind in plan_of(unjudged(domain)).tool_types.items()}


def test_what_nobody_mentions_is_left_out_and_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tau2_lightning.environment.script.Script.answer", lambda *_: None)
    task = find_task("retail", "0")
    with pytest.raises(LeftOut, match="the user does not say who it is"):
        demonstrate(unjudged("retail"), task, random.Random(0), 0.0, {})
    playable = Playable(unjudged("retail"))
    assert not playable.has(task) and not playable.has(task)
    assert playable.left_out == {"0": "the user does not say who it is"}
    with pytest.raises(ConfigError, match="of 1 tasks, 1 cannot be demonstrated"):
        generate_demonstrations(unjudged("retail"), [task], 1, 0)


def test_a_limit_of_steps_that_is_too_low_is_named() -> None:
    short = replace(unjudged("retail"), max_steps=8)
    with pytest.raises(
        ConfigError, match=r"of 1 tasks, 1 cannot be demonstrated \(1: the expert needs more steps than"
    ):
        generate_demonstrations(short, [find_task("retail", "0")], 1, 0, require_reward=1.0)
