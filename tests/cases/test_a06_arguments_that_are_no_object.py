"""A6: a call whose arguments are a list, a string, a number or null is malformed in every format: it is returned as
content, flagged, and penalised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tau2_lightning.algorithm.shaping import RewardShaping
from tau2_lightning.rollout.chat.message import ToolCall
from tau2_lightning.rollout.chat.parsers import PARSERS
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.cases.talk import FORMS, USER, both, rig_of, turn
from tests.rollout.proxy.rig import TOOLS, Rig

NO_OBJECTS = ['["x"]', '"x"', "3", "null", "true", "[]", '"{}"', '"{\\"a\\": 1}"']


@pytest.mark.parametrize("arguments", NO_OBJECTS)
@pytest.mark.parametrize("form", FORMS)
async def test_it_is_malformed(form: str, arguments: str) -> None:
    said = FORMS[form] % arguments
    async with rig_of(form) as rig:
        got = await both(rig, said)
        assert not got.calls and got.message["content"] == said and got.reason == "stop"
        assert got.node.invalid_format
        rig.store.set_reward(got.session.session_id, 1.0)
        (row,) = rig.store.export(got.session.session_id)
        assert row.turns[0].penalty(RewardShaping(invalid_format_penalty=0.25)) == 0.25
        (outside,) = rig.store.export_json(got.session.session_id)
        assert outside["turns"][0]["reward"] == 0.75
        assert "invalid_format_total" in rig.service.metrics.render().decode()


@pytest.mark.parametrize("said", ["[look(['x'])]", "[look('x')]", "[look(3)]", "[look(None)]", "[look(**{'a': 1})]"])
async def test_pythonic_arguments_without_a_name_are_malformed(said: str) -> None:
    async with rig_of("pythonic") as rig:
        got = await both(rig, said)
        assert not got.calls and got.message["content"] == said and got.node.invalid_format


@pytest.mark.parametrize("form", FORMS)
async def test_one_of_two_makes_the_turn_malformed(form: str) -> None:
    good, bad = FORMS[form] % '{"a": 1}', FORMS[form] % "[1]"
    async with rig_of(form) as rig:
        got = await both(rig, f"{good}\n{bad}")
        assert not got.calls and got.node.invalid_format
        assert len((await both(rig, f"{good}\n{good}")).calls) == 2  # negative control


@pytest.mark.parametrize("arguments", [*NO_OBJECTS, "{}"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_forced_choice_sampled_as_json(arguments: str, stream: bool) -> None:
    said = f'[{{"name": "look", "parameters": {arguments}}}]'
    async with Rig(ProxySettings(enforce_tool_choice=True), "qwen3", "llama3_json") as rig:
        got = await turn(rig, said, stream=stream, tool_choice="required")
        assert rig.engine.calls[0][1].structured
        assert got.node.invalid_format == (arguments != "{}")
        assert got.calls == ([("look", "{}")] if arguments == "{}" else [])
        assert (got.message["content"] or "") == ("" if arguments == "{}" else said)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_parser_of_ones_own_need_not_know_the_rule(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lenient:
        openings = ("CALL",)

        def parse(self, text: str, tools: Sequence[Any]) -> Any:
            before, found, rest = text.partition("CALL ")
            name, _, arguments = rest.partition(" ")
            return (before or None, (ToolCall(name, arguments),), False) if found else (text, (), False)

        def structural_tag(self, functions: Sequence[Any], *, once: bool) -> None:
            return None

    monkeypatch.setitem(PARSERS, "lenient", lambda tokenizer: Lenient())
    async with Rig(ProxySettings(), "qwen3", "lenient") as rig:
        for arguments in (*NO_OBJECTS, '{"a": NaN}', "{", ""):
            got = await turn(rig, f"CALL look {arguments}", stream=stream)
            assert got.node.invalid_format and not got.calls
            assert got.message["content"] == f"CALL look {arguments}"
        assert (await turn(rig, "CALL  {}", stream=stream)).node.invalid_format
        got = await turn(rig, 'ok CALL look {"a": "\ud83d"}'.replace("\ud83d", "\\ud83d"), stream=stream)
        assert got.message["content"] == "ok " and json.loads(got.calls[0][1]) == {"a": "\ufffd"}


async def test_the_openai_client_gets_no_call_that_it_cannot_make() -> None:
    import openai

    async with rig_of("hermes") as rig:
        rig.engine.script.append(FORMS["hermes"] % '["x"]')
        client = openai.AsyncOpenAI(base_url=rig.server.base_url, api_key=rig.store.start().api_key, max_retries=0)
        tools: Any = TOOLS
        messages: Any = USER
        answer = await client.chat.completions.create(model="policy", messages=messages, tools=tools)
        assert answer.choices[0].message.tool_calls is None and answer.choices[0].message.content
        await client.close()
