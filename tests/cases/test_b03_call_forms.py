"""B3: templates with their own forms of call ids, names of results and arguments: episodes with calls work."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.chat import format as format_module
from tau2_lightning.rollout.chat.form import MessageForm
from tests.cases.talk import assembled, chunks
from tests.cases.templated import GOLD, prompts, rig_of, solo_episode
from tests.rollout.chat import behaviours as b
from tests.rollout.proxy.rig import TOOLS


def hermes(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def mistral(name: str, arguments: dict[str, Any]) -> str:
    return f"[TOOL_CALLS]{json.dumps([{'name': name, 'arguments': arguments}])}"


FORMS = {
    "nine characters": (b.NINE, hermes),
    "mistral": (b.MISTRAL, mistral),
    "names": (b.NEEDS_NAMES, hermes),
    "text arguments": (b.TEXT_ARGUMENTS, hermes),
}


@pytest.mark.parametrize("policy", ["keep", "branch"])
@pytest.mark.parametrize("kind", FORMS)
async def test_b03_an_episode_with_calls(kind: str, policy: Any) -> None:
    source, said = FORMS[kind]
    async with rig_of(source, history_policy=policy) as rig:
        result, session = await solo_episode(rig, [said(*call) for call in GOLD])
        assert result["reward"] == 1.0 and session.branches == 0
        first, second = prompts(rig)
        assert second.startswith(first)
        if kind == "names":
            assert "<|im_start|>tool\ncreate_task: " in second
        if kind == "nine characters":
            assert re.search(r"<\|im_start\|>tool\n[0-9a-z]{9}: ", second)


async def test_b03_without_the_form_such_an_episode_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_module, "find_form", lambda _: MessageForm())
    async with rig_of(b.NINE, "hermes", history_policy="branch") as rig:
        with pytest.raises(InfrastructureFault, match="proxy: rejected"):
            await solo_episode(rig, [hermes(*call) for call in GOLD])


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize("stream", [False, True])
async def test_b03_ids_have_the_templates_form_and_come_back(stream: bool) -> None:
    async with rig_of(b.MISTRAL) as rig:
        session = rig.store.start(tools=TOOLS)
        rig.engine.script.append(mistral("look", {"at": "é"}))
        if stream:
            message, _ = assembled(await chunks(rig, session.api_key, {"messages": [USER]}))
        else:
            message = (await rig.post(session.api_key, {"messages": [USER]})).json()["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert re.fullmatch("[0-9a-z]{9}", call["id"])
        result = {"role": "tool", "tool_call_id": call["id"], "content": "seen"}
        answer = await rig.post(session.api_key, {"messages": [USER, message, result]})
        assert answer.status_code == 200 and session.branches == 0


async def test_b03_a_client_may_number_calls_its_own_way() -> None:
    async with rig_of(b.NINE) as rig:
        session = rig.store.start(tools=TOOLS)
        function = {"name": "look", "arguments": "{}"}
        turn = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }
        result = {"role": "tool", "tool_call_id": "1", "content": "seen"}
        answer = await rig.post(session.api_key, {"messages": [USER, turn, result]})
        assert answer.status_code == 200, answer.text
        (shown,) = re.findall(r"<\|im_start\|>tool\n(\w+): seen", prompts(rig)[0])
        assert len(shown) == 9


async def test_b03_other_templates_get_the_ids_as_before() -> None:
    async with rig_of(b.PLAIN) as rig:
        session = rig.store.start(tools=TOOLS)
        rig.engine.script.append(hermes("look", {}))
        message = (await rig.post(session.api_key, {"messages": [USER]})).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["id"].startswith("call_")
