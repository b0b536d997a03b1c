r"""A3: the policy samples half a character, as the escape ``"\ud83d"`` in the JSON of a call.

The turn is served and recorded, with every client; U+FFFD replaces the half, so that no later code fails on it.
"""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, find_task
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.cases.talk import FORMS, USER, both, rig_of, turn
from tests.rollout.proxy.rig import TOOLS, Rig

HALVES = [
    ('{"a": "\\ud83d"}', {"a": "\ufffd"}),
    ('{"a": "\\ude00 \\uD83D"}', {"a": "\ufffd \ufffd"}),
    ('{"\\udfff": {"b": ["\\ud800\\ud800\\udc00"]}}', {"\ufffd": {"b": ["\ufffd\U00010000"]}}),
    ('{"a": "\\\\ud83d"}', {"a": "\\ud83d"}),  # not an escape: a backslash and five letters
    ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),  # a whole character
]


@pytest.mark.parametrize(("arguments", "meant"), HALVES)
@pytest.mark.parametrize("form", FORMS)
async def test_the_call_is_served_and_recorded(form: str, arguments: str, meant: Any) -> None:
    async with rig_of(form) as rig:
        turn = await both(rig, FORMS[form] % arguments)
        (call,) = turn.calls
        assert call[0] == "look" and orjson.loads(call[1]) == meant
        assert not turn.node.invalid_format
        assert rig.tokenizer.decode(turn.node.sampled.token_ids).startswith(FORMS[form] % arguments)


async def test_what_has_no_half_stays_as_it_was_written() -> None:
    arguments = '{ "b":1.50,  "a": "\\u00e9\\ud83d\\ude00é" }'
    async with rig_of("hermes") as rig:
        assert (await both(rig, FORMS["hermes"] % arguments)).calls == [("look", arguments)]


async def test_half_a_character_in_a_name_and_in_pythonic_calls() -> None:
    async with rig_of("hermes") as rig:
        turn = await both(rig, '<tool_call>{"name": "lo\\ud83dok", "arguments": {}}</tool_call>')
        assert turn.calls == [("lo\ufffdok", "{}")]
    async with rig_of("pythonic") as rig:
        ((_, arguments),) = (await both(rig, r"[look(a='\ud83d', b={'\udc00': 1})]")).calls
        assert orjson.loads(arguments) == {"a": "\ufffd", "b": {"\ufffd": 1}}


@pytest.mark.parametrize("over_http", [True, False])
async def test_the_next_turn_continues_it(over_http: bool) -> None:
    async with rig_of("hermes") as rig:
        url = rig.server.base_url
        async with episode_access(rig.service, url, over_http=over_http, timeout=10) as access:
            session = rig.store.start(tools=TOOLS)
            rig.engine.script.extend([FORMS["hermes"] % '{"a": "\\ud83d"}', "done"])
            client = access.client(session.api_key)
            reply = await client.complete({"messages": USER})
            # LangChain too parses the arguments and serialises them again.
            function = reply["tool_calls"][0]["function"]
            function["arguments"] = json.dumps(json.loads(function["arguments"]), ensure_ascii=False)
            result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "no \ufffd here"}
            assert (await client.complete({"messages": [*USER, reply, result]}))["content"] == "done"
            assert session.branches == 0 and session.turns == 2
            (row,) = rig.store.export(session.session_id)
            assert row.loss_mask.sum() == row.sampled_tokens > 0
            headers = {"Authorization": f"Bearer {session.api_key}"}
            where = f"{url.removesuffix('/v1')}/sessions/{session.session_id}/export"
            exported = await rig.http.get(where, headers=headers)
            assert exported.status_code == 200 and len(exported.json()["rows"]) == 1


async def test_a_tau2_episode_goes_on() -> None:
    """tau2 answers the call with an error, as it does for any wrong argument; the agent's next call is played."""
    said = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
    async with (
        Rig(ProxySettings(request_timeout=10)) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=False, timeout=10) as access,
    ):
        settings, task = EnvironmentSettings("mock", solo_mode=True), find_task("mock", "create_task_1")
        session = rig.store.start(tools=Dialogue(task, settings).tools)
        rig.engine.script.extend(
            [
                said % ("create_task", '{"user_id": "\\ud83d", "title": "Important Meeting"}'),
                said % ("create_task", '{"user_id": "user_1", "title": "Important Meeting"}'),
                said % ("done", "{}"),
            ]
        )
        workflow = Tau2Workflow(settings)
        data = {"task": task, "seed": 3}
        result = await workflow.run(data, client=access.client(session.api_key))
        assert result["reward"] == 1.0 and result["outcome"].tool_errors == 1
        assert session.turns == 3 and session.branches == 0
        orjson.dumps(result["outcome"].simulation, default=str)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_forced_choice_sampled_as_json(stream: bool) -> None:
    async with Rig(ProxySettings(enforce_tool_choice=True), "qwen3", "mistral") as rig:
        said = '[{"name": "look", "parameters": {"a": "\\ud83d"}}]'
        got = await turn(rig, said, stream=stream, tool_choice="required")
        assert got.calls == [("look", '{"a": "\\ufffd"}')] and not got.node.invalid_format
        got = await turn(rig, '{"a": "\\ud83d"}', stream=stream, response_format={"type": "json_object"})
        assert got.message["content"] == '{"a": "\\ud83d"}', "escapes in text must stay"
