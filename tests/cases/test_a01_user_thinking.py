"""A1, A2: thoughts of the user's model are hidden from the agent and cannot end the dialogue; the record keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.environment.user_model import THOUGHTS
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.environment.helpers import says
from tests.environment.user_server import Answer, serving
from tests.rollout.proxy.rig import Rig

TASK = load_tasks("retail", "train")[0]
SAID = "Hi, I want to exchange my keyboard."
SECRET = "I must not say my name"


def answer(content: str | None, **fields: Any) -> Answer:
    return {"message": {"role": "assistant", "content": content, **fields}}


def settings(url: str, **kwargs: Any) -> EnvironmentSettings:
    return EnvironmentSettings("retail", user=UserSettings("llm", llm="user-7b", base_url=url, **kwargs))


@pytest.mark.parametrize(
    "first",
    [
        answer(f"<think>{SECRET}</think>\n\n{SAID}"),
        answer(f"{SECRET}</think>\n\n{SAID}"),
        answer(f"\n\n{SAID}", reasoning_content=SECRET),
        answer(SAID, reasoning=SECRET),
    ],
    ids=["block", "opened by the template", "reasoning_content", "reasoning"],
)
async def test_a1_thinking_is_split_off_kept_in_the_record_and_never_shown(first: Answer) -> None:
    async with serving(first, answer("<think>They are done.</think>Thanks. ###STOP###")) as (server, url):
        dialogue = Dialogue(TASK, settings(url), seed=1)
        await dialogue.start()
        assert dialogue.messages[-1]["content"].strip() == SAID
        await dialogue.reply(says("That is done. Goodbye!"))
        outcome = dialogue.outcome()
    assert SECRET not in json.dumps(dialogue.messages)
    assert SECRET not in json.dumps(server.requests[1]), "the next prompt of the user's model contains its thoughts"
    users = [message for message in outcome.simulation["messages"] if message["role"] == "user"]
    assert [message["raw_data"] for message in users] == [{THOUGHTS: SECRET}, {THOUGHTS: "They are done."}]
    assert not any(SECRET in (message["content"] or "") for message in outcome.simulation["messages"])


async def test_a1_without_a_parser_the_text_stays_as_it_is() -> None:
    """Negative control: without a parser nothing is split."""
    async with serving(answer(f"<think>{SECRET}</think>{SAID}")) as (_, url):
        dialogue = Dialogue(TASK, settings(url, reasoning_parser=None), seed=1)
        await dialogue.start()
    assert SECRET in dialogue.messages[-1]["content"]


@pytest.mark.parametrize("token", ["###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"])
@pytest.mark.parametrize("field", [False, True])
async def test_a2_a_stop_token_that_is_only_thought_of_ends_nothing(token: str, *, field: bool) -> None:
    thought = f"Shall I say {token} now? Not yet."
    first = answer(SAID, reasoning_content=thought) if field else answer(f"<think>{thought}</think>\n\n{SAID}")
    async with serving(first, answer(f"<think>Now.</think>{token}")) as (_, url):
        dialogue = Dialogue(TASK, settings(url), seed=1)
        await dialogue.start()
        assert not dialogue.done and dialogue.messages[-1]["content"] == SAID
        await dialogue.reply(says("Goodbye!"))
    assert dialogue.done and dialogue.outcome().termination_reason == "user_stop"


async def test_thoughts_and_nothing_said_are_tried_again_and_then_a_fault_that_says_so() -> None:
    cut_off = answer("<think>a long thought that max_tokens cuts")
    async with serving(cut_off, answer(f"<think>short</think>{SAID}")) as (server, url):
        dialogue = Dialogue(TASK, settings(url), seed=1)
        await dialogue.start()
    assert dialogue.messages[-1]["content"] == SAID and len(server.requests) == 2
    async with serving(*[answer("<think>ends</think>\n") for _ in range(2)]) as (_, url):
        with pytest.raises(InfrastructureFault, match="only_thoughts.*max_tokens"):
            await Dialogue(TASK, settings(url, max_retries=1), seed=1).start()


async def test_thoughts_beside_the_users_tool_call_are_split_off_too() -> None:
    call = {"id": "u1", "type": "function", "function": {"name": "check_sim_status", "arguments": "{}"}}
    first = answer(f"<think>{SECRET}</think>", tool_calls=[call])
    async with serving(answer("My phone is broken."), first, answer("It says active.")) as (server, url):
        world = replace(settings(url), domain="telecom")
        dialogue = Dialogue(load_tasks("telecom", "train")[0], world, seed=1)
        await dialogue.start()
        await dialogue.reply(says("Please check your SIM."))
    assert SECRET not in json.dumps([dialogue.messages, server.requests])
    assert dialogue.messages[-1]["content"] == "It says active."


async def test_a1_a2_with_the_user_on_an_engine_of_our_own() -> None:
    """The proxy that serves ``econfig.user_engine``, here with Qwen3's template, returns the thoughts in a field."""
    proxy = ProxySettings(model_name="user-7b", max_new_tokens=4000, request_timeout=20)
    async with Rig(proxy, "qwen3") as rig:
        rig.engine.script.extend(
            [f"<think>\n{SECRET} ###STOP###\n</think>\n\n{SAID}", "<think>\n\n</think>\n\n###STOP###"]
        )
        world = settings(rig.server.base_url, api_key=proxy.client_key)
        dialogue = Dialogue(TASK, world, seed=1)
        await dialogue.start()
        assert not dialogue.done and dialogue.messages[-1]["content"] == SAID
        await dialogue.reply(says("Goodbye!"))
        outcome = dialogue.outcome()
        prompts = [rig.tokenizer.decode(call[0]) for call in rig.engine.calls]
    assert outcome.termination_reason == "user_stop"
    assert SECRET not in prompts[1] and SAID in prompts[1]
    users = [message for message in outcome.simulation["messages"] if message["role"] == "user"]
    assert SECRET in users[0]["raw_data"][THOUGHTS]
