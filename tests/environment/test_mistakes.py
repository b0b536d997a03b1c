"""The agent's mistakes raise nothing: tau2 answers them or ends the episode, and they are counted."""

from __future__ import annotations

from typing import Any

import pytest

from tau2_lightning.environment import cross_check
from tests.environment.helpers import calls, first_task, play, raw_call, says, scripted, solo

MALFORMED = ["{bad", "", "[1]", "null", "3", '"x"', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', None, "[" * 5000]


@pytest.mark.parametrize("arguments", MALFORMED)
async def test_malformed_arguments_get_a_tool_error_and_the_episode_goes_on(arguments: Any) -> None:
    task, settings = first_task(), solo()
    message = {"role": "assistant", "content": None, "tool_calls": [raw_call("check_sim_status", arguments)]}
    dialogue = await play(task, settings, [message])
    assert not dialogue.done
    answer = dialogue.messages[-1]
    assert answer["role"] == "tool" and answer["tool_call_id"] == "c" and answer["content"].startswith("Error:")
    await dialogue.reply(calls(("done", {})))
    outcome = dialogue.outcome()
    assert outcome.mistakes == {"malformed_arguments": 1} and outcome.tool_errors == 1
    assert outcome.termination_reason == "agent_stop"
    assert cross_check(outcome.simulation, task, settings) == outcome.reward


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (says("I will help"), "no_tool_call"),
        (says("###STOP###"), "no_tool_call"),
        (says("  "), "empty_reply"),
        ({"role": "assistant", "content": None}, "empty_reply"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "empty_reply"),
        (calls(("check_sim_status", {}), content="###STOP###"), "stop_token_in_text"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
async def test_solo_replies_without_a_usable_call_end_in_agent_error(message: Any, kind: str, first: bool) -> None:
    task, settings = first_task(), solo()
    dialogue = await play(task, settings, [message] if first else [calls(("check_sim_status", {})), message])
    assert dialogue.done
    outcome = dialogue.outcome()
    assert (outcome.reward, outcome.termination_reason) == (0.0, "agent_error")
    assert outcome.mistakes[kind] == 1
    assert cross_check(outcome.simulation, task, settings) == 0.0


async def test_empty_reply_to_a_user_ends_in_agent_error_and_text_does_not() -> None:
    task = first_task("telecom", "train", solo_mode=False)
    dialogue = await play(task, scripted("telecom"), [says("Hello?"), says("")])
    assert dialogue.done and dialogue.outcome().mistakes == {"empty_reply": 1}


async def test_unknown_tools_and_wrong_arguments_are_tau2_errors() -> None:
    dialogue = await play(first_task(), solo(), [calls(("nope", {})), calls(("make_payment", {"x": 1}))])
    assert [m["content"].split(":")[0] for m in dialogue.messages if m["role"] == "tool"] == ["Error", "Error"]
    await dialogue.reply(calls(("done", {})))
    outcome = dialogue.outcome()
    assert outcome.mistakes == {"unknown_tool": 1} and outcome.tool_errors == 2


async def test_names_that_collide_with_tau2s_own_parameters_are_errors() -> None:
    message = calls(("check_sim_status", {"tool_name": "x", "requestor": "user"}))
    dialogue = await play(first_task(), solo(), [message])
    assert dialogue.messages[-1]["content"].startswith("Error:")


async def test_too_many_errors_end_the_episode_at_tau2s_limit() -> None:
    dialogue = await play(first_task(), solo(max_errors=3), [calls(("nope", {}))] * 10)
    outcome = dialogue.outcome()
    assert (outcome.turns, outcome.termination_reason, outcome.reward) == (3, "too_many_errors", 0.0)


async def test_max_steps_count_as_tau2_counts() -> None:
    # tau2 handles the first solo call in initialize(); after that, each result and each call is a step.
    dialogue = await play(first_task(), solo(max_steps=6), [calls(("check_sim_status", {}))] * 20)
    outcome = dialogue.outcome()
    assert (outcome.turns, outcome.termination_reason) == (4, "max_steps")


async def test_several_calls_are_all_answered_in_order() -> None:
    message = calls(("check_sim_status", {}), ("nope", {}), ("check_apn_settings", {}))
    dialogue = await play(first_task(), solo(), [message])
    results = dialogue.messages[-3:]
    assert [m["tool_call_id"] for m in results] == ["c0", "c1", "c2"]
    assert [m["content"].startswith("Error") for m in results] == [False, True, False]


async def test_done_beside_other_calls_drops_them_as_tau2_does() -> None:
    task, settings = first_task(), solo()
    dialogue = await play(task, settings, [calls(("toggle_airplane_mode", {}), ("done", {}))])
    outcome = dialogue.outcome()
    assert outcome.termination_reason == "agent_stop" and outcome.mistakes["done_beside_others"] == 1
    assert [m["content"] for m in outcome.simulation["messages"]] == ["###STOP###"]
    cross_check(outcome.simulation, task, settings)


async def test_thinking_leaves_no_trace_in_tau2s_trajectory_but_counts_as_steps() -> None:
    task, settings = first_task(), solo(add_thinking_tool=True, max_steps=8)
    mixed = calls(("check_sim_status", {}), ("think", {"thought": "hm"}), ("check_apn_settings", {}))
    dialogue = await play(task, settings, [calls(("think", {"thought": "a"})), mixed])
    assert [m["tool_call_id"] for m in dialogue.messages[-3:]] == ["c0", "c1", "c2"]
    assert dialogue.messages[-2]["content"] == ""
    assert "think" in {schema["function"]["name"] for schema in dialogue.tools}
    await dialogue.reply(calls(("done", {})))
    outcome = dialogue.outcome()
    names = [c["name"] for m in outcome.simulation["messages"] for c in m.get("tool_calls") or ()]
    assert names == ["check_sim_status", "check_apn_settings"] and not outcome.mistakes.get("unknown_tool")
    cross_check(outcome.simulation, task, settings)
    endless = await play(task, settings, [calls(("think", {"thought": "a"}))] * 50)
    assert endless.outcome().termination_reason == "max_steps"


async def test_abort_scores_zero_and_names_its_reason() -> None:
    dialogue = await play(first_task(), solo(), [calls(("check_sim_status", {}))])
    dialogue.abort("context_overflow")
    outcome = dialogue.outcome()
    assert (outcome.reward, outcome.termination_reason) == (0.0, "context_overflow")
    assert outcome.simulation["termination_reason"] == "agent_error"
