"""Recorded simulations become the messages that the agent had in the episode: what a training rollout would show it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tau2_lightning.environment import (
    AgentsViews,
    Dialogue,
    EnvironmentSettings,
    UnusableSimulation,
    UserSettings,
    find_task,
    has_other_rules,
    load_tasks,
    was_solo,
)
from tau2_lightning.environment.demonstrations import demonstrate
from tau2_lightning.environment.results import _info
from tau2_lightning.environment.simulations import thoughts_of
from tests.environment.helpers import banking, calls, play, raw_call, says, scripted, solo, unjudged, upstream_only

HISTORY = "update_task_with_message_history"


def parsed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the arguments of calls as objects: their spelling is the template's matter."""
    copied = json.loads(json.dumps(messages))
    for message in copied:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            call["id"] = "" if call["function"]["name"] == "done" else call["id"]
    return copied


def to_last_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: last + 1]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(solo(), id="telecom-solo"),
        pytest.param(solo(policy="ticket"), id="telecom-ticket"),
        pytest.param(scripted("telecom"), id="telecom-dual"),
        pytest.param(unjudged("retail"), id="retail"),
        pytest.param(unjudged("airline"), id="airline"),
        pytest.param(scripted("mock", policy="none"), id="mock-without-rules"),
        pytest.param(solo("mock"), id="mock-solo"),
        pytest.param(banking("golden_retrieval"), id="banking", marks=upstream_only),
    ],
)
def test_the_view_is_what_the_agent_had(settings: EnvironmentSettings) -> None:
    views, rng = AgentsViews(settings), random.Random(3)
    for task in load_tasks(settings.domain, "train", solo_mode=settings.solo_mode)[:4]:
        made, simulation = demonstrate(settings, task, rng, 0.2, {})
        view = views.of(json.loads(json.dumps(simulation)))
        assert parsed(view.messages) == parsed(to_last_turn(made.messages))
        assert view.tools == made.tools
        if task.task_id != HISTORY:
            assert view.given == (1 if settings.solo_mode else 2), "the opening, and tau2's greeting"


async def test_a_history_that_the_task_brings_is_given() -> None:
    settings = scripted("mock")
    dialogue = await play(find_task("mock", HISTORY), settings, [])
    before = len(dialogue.messages)
    await dialogue.reply(says("Goodbye!"))
    dialogue.abort("enough") if not dialogue.done else None
    view = AgentsViews(settings).of(dialogue.outcome().simulation)
    # The last message before the agent's turn is the user's answer to the history, not a part of it.
    assert before > 3 and view.given == before - 1 and len(view.messages) == before + 1
    assert parsed(view.messages) == parsed(to_last_turn(dialogue.messages))


async def test_what_the_user_does_alone_is_not_seen() -> None:
    settings = scripted("telecom")
    task = load_tasks("telecom", "train")[0]
    dialogue = await play(task, settings, [says("Please run check_status_bar({})"), says("Goodbye!")] * 3)
    dialogue.abort("enough") if not dialogue.done else None
    simulation = dialogue.outcome().simulation
    alone = [m for m in simulation["messages"] if m.get("requestor") == "user" or m.get("tool_calls")]
    view = AgentsViews(settings).of(simulation)
    assert alone, "the check needs calls of the user"
    assert parsed(view.messages) == parsed(to_last_turn(dialogue.messages))
    assert {message["role"] for message in view.messages} == {"system", "assistant", "user"}


async def test_thoughts_are_kept_in_the_file_and_come_back() -> None:
    settings = scripted("mock")
    reply = calls(("get_users", {})) | {"reasoning_content": "Who is there?"}
    dialogue = await play(find_task("mock", "create_task_1"), settings, [reply, says("Bye")])
    dialogue.abort("enough") if not dialogue.done else None
    view = AgentsViews(settings).of(json.loads(json.dumps(dialogue.outcome().simulation)))
    assert [m.get("reasoning_content") for m in view.messages if m["role"] == "assistant"] == [
        None, "Who is there?", None,
    ]  # fmt: skip
    assert all("reasoning_content" not in message for message in dialogue.messages), "nobody in the episode sees them"
    assert thoughts_of({"raw_data": {"finish_reason": "stop", "message": {"reasoning_content": "So."}}}) == "So."
    assert thoughts_of({"raw_data": None}) is None and thoughts_of({"raw_data": {"message": None}}) is None


async def test_what_no_policy_should_imitate_is_refused_with_its_reason() -> None:
    settings = scripted("mock")
    broken = {"role": "assistant", "content": None, "tool_calls": [raw_call("get_users", "{no json")]}
    dialogue = await play(find_task("mock", "create_task_1"), settings, [broken])
    dialogue.abort("enough") if not dialogue.done else None
    with pytest.raises(UnusableSimulation, match="malformed tool call"):
        AgentsViews(settings).of(dialogue.outcome().simulation)
    untouched = await play(find_task("mock", "create_task_1"), settings, [])
    untouched.abort("enough")
    with pytest.raises(UnusableSimulation, match="no turn of the agent"):
        AgentsViews(settings).of(untouched.outcome().simulation)
    empty = {"task_id": "create_task_1", "messages": [{"role": "assistant", "content": " "}] * 2}
    with pytest.raises(UnusableSimulation, match="an empty turn"):
        AgentsViews(settings).of(empty)


def test_a_file_says_its_mode_and_its_rules() -> None:
    dual, alone = (_info(each, "m", 1, None, {}).model_dump(mode="json") for each in (scripted("mock"), solo("mock")))
    assert was_solo(alone) and not was_solo(dual)
    assert not has_other_rules(dual, scripted("mock"))
    dual["environment_info"]["policy"] += " And smile."
    assert has_other_rules(dual, scripted("mock"))
    assert not has_other_rules({}, scripted("mock")), "a file that does not tell is no other"


def test_a_simulated_user_needs_no_model_here() -> None:
    settings = EnvironmentSettings("mock", user=UserSettings("llm", llm="no-such-model"))
    task = find_task("mock", "create_task_1")
    opening = Dialogue(task, scripted("mock")).opening()
    said = [{"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Help."}, says("No.")]
    assert AgentsViews(settings).of({"task_id": task.task_id, "messages": said}).messages[:1] == opening
