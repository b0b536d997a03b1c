"""Users: the scripted user, and tau2's user simulator with a real HTTP server whose answers can fail."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, UserSettings, load_tasks, served_model
from tau2_lightning.errors import ConfigError, InfrastructureFault
from tests.environment.helpers import calls, play, says, scripted
from tests.environment.user_server import Answer, serving


def text(content: str) -> Answer:
    return {"message": {"role": "assistant", "content": content}}


def tool(name: str, arguments: str) -> Answer:
    call = {"id": "u1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}


def modelled(domain: str, url: str, **kwargs: Any) -> EnvironmentSettings:
    user = UserSettings("llm", llm="openai/user-7b", base_url=url, llm_args={"temperature": 0.3}, **kwargs)
    return EnvironmentSettings(domain, user=user)


def dual_task(domain: str = "telecom") -> TaskRef:
    return load_tasks(domain, "train")[0]


async def test_the_users_own_tool_calls_stay_in_its_history() -> None:
    script = [text("My phone is broken"), tool("check_sim_status", "{}"), text("It says active"), text("###STOP###")]
    async with serving(*script) as (server, url):
        task, settings = dual_task(), modelled("telecom", url)
        dialogue = await play(task, settings, [says("Please check your SIM."), says("Then it works. Bye.")])
        outcome = dialogue.outcome()
    assert outcome.termination_reason == "user_stop" and outcome.user == "openai/user-7b"
    first, third, last = server.requests[0], server.requests[2], server.requests[3]
    assert first["model"] == "user-7b" and first["temperature"] == 0.3 and first["tool_choice"] == "auto"
    assert {t["function"]["name"] for t in first["tools"]} >= {"check_sim_status", "toggle_data"}
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert "<scenario>" in first["messages"][0]["content"]
    # For the user's model, the agent has the role user. The call and its result stay in the history.
    assert [m["role"] for m in third["messages"]] == ["system", "user", "assistant", "user", "assistant", "tool"]
    assert third["messages"][4]["tool_calls"][0]["function"]["name"] == "check_sim_status"
    assert third["messages"][5]["content"]
    assert last["messages"][:6] == third["messages"]
    # The agent sees what the user says, not what it does.
    assert [m["role"] for m in dialogue.messages] == ["system", "assistant", "user", "assistant", "user", "assistant"]
    assert dialogue.messages[4]["content"] == "It says active"


async def test_seeds_differ_between_episodes_and_attempts() -> None:
    async with serving(text(""), text("hello"), text("hi")) as (server, url):
        for seed in (10, 77):
            await Dialogue(dual_task(), modelled("telecom", url), seed=seed).start()
    assert [request["seed"] for request in server.requests] == [10, 11, 77]


BROKEN = ["{no", "[]", "null", '{"a": NaN}', '{"a": "\\ud83d"}', f'{{"a": {"9" * 5000}}}', '{"a": ' + "[" * 100_000]


@pytest.mark.parametrize(
    "bad",
    [{"status": 500}, {"status": 429}, text(""), tool("", "{}")] + [tool("check_sim_status", one) for one in BROKEN],
    ids=lambda bad: str(bad)[:100],
)
async def test_a_failing_user_is_retried(bad: Answer) -> None:
    async with serving(bad, text("My phone is broken")) as (server, url):
        dialogue = Dialogue(dual_task(), modelled("telecom", url), seed=1)
        await dialogue.start()
    assert len(server.requests) == 2 and dialogue.messages[-1] == {"role": "user", "content": "My phone is broken"}


async def test_a_server_that_gives_calls_no_id_can_play_the_user() -> None:
    called = tool("check_sim_status", "{}")
    called["message"]["tool_calls"][0]["id"] = None
    async with serving(text("My phone is broken"), called, text("It is active.")) as (_, url):
        dialogue = Dialogue(dual_task(), modelled("telecom", url), seed=1)
        await dialogue.start()
        await dialogue.reply(says("Please check your SIM."))
    assert dialogue.messages[-1]["content"] == "It is active."


@pytest.mark.parametrize(
    ("bad", "cause", "requests"),
    [
        ({"status": 500}, "http_500", 2),
        ({"status": 401}, "http_401", 1),
        (text(" "), "bad_reply", 2),
        ({"delay": 0.8, **text("late")}, "timeout", 2),
    ],
)
async def test_a_user_that_keeps_failing_is_a_fault_and_never_a_reward(bad: Answer, cause: str, requests: int) -> None:
    async with serving(*[dict(bad) for _ in range(requests)]) as (server, url):
        dialogue = Dialogue(dual_task(), modelled("telecom", url, max_retries=1, timeout_s=0.3), seed=1)
        with pytest.raises(InfrastructureFault) as caught:
            await dialogue.start()
    assert (caught.value.component, caught.value.cause) == ("user", cause)
    assert len(server.requests) == requests
    with pytest.raises(RuntimeError, match="still going on"):
        dialogue.outcome()


async def test_a_user_nobody_serves_is_a_connection_fault() -> None:
    dialogue = Dialogue(dual_task(), modelled("telecom", "http://127.0.0.1:9/v1", max_retries=0), seed=1)
    with pytest.raises(InfrastructureFault, match="user: connection"):
        await dialogue.start()


async def test_one_slow_user_does_not_hold_up_other_episodes() -> None:
    async with serving({"delay": 1.5, **text("slow")}) as (_, url):
        slow = asyncio.create_task(Dialogue(dual_task(), modelled("telecom", url), seed=1).start())
        await asyncio.sleep(0.2)
        quick = await play(dual_task(), scripted("telecom"), [says("Goodbye!")])
        assert quick.done and not slow.done()
        await slow


async def test_the_script_opens_acts_reports_and_hangs_up() -> None:
    ask = says("Please run toggle_airplane_mode({}) and then check_network_status({}), but not nope({}).")
    dialogue = await play(dual_task(), scripted("telecom"), [ask, says("Hm, toggle_data({broken})?"), says("Goodbye")])
    user = [m["content"] for m in dialogue.messages if m["role"] == "user"]
    assert user[1].startswith("I did that. ") and "Airplane Mode is now" in user[1] and " | Airplane Mode: O" in user[1]
    assert user[2] == "Okay, please go on."
    made = [m for m in dialogue.outcome().simulation["messages"] if m["role"] == "user" and m["tool_calls"]]
    assert [call["requestor"] for call in made[0]["tool_calls"]] == ["user", "user"]
    assert dialogue.outcome().termination_reason == "user_stop"


async def test_the_script_accepts_a_transfer() -> None:
    transfer = calls(("transfer_to_human_agents", {"summary": "x"}))
    task = load_tasks("airline", "train")[0]
    dialogue = await play(task, scripted("airline"), [transfer, says("You are being transferred.")])
    outcome = dialogue.outcome()
    assert outcome.transferred and not outcome.transfer_expected and outcome.user == "scripted"
    assert json.dumps(outcome.simulation).count("###TRANSFER###") == 1


async def test_a_server_with_one_model_needs_no_name_for_it() -> None:
    async with serving() as (server, url):
        settings = UserSettings("llm", llm="", base_url=url)
        assert await served_model(settings) == "user-7b"
        server.served = ["user-7b", "user-70b"]
        with pytest.raises(ConfigError, match=r"econfig.user_llm.*serves 2 models.*user-7b, user-70b"):
            await served_model(settings)
    with pytest.raises(InfrastructureFault, match=r"user: connection.*asking http"):
        await served_model(settings)
