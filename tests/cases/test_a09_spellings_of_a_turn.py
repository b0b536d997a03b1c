"""A9: a turn sent back in another spelling is the same turn and makes no branch; a changed turn makes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.cases.talk import USER
from tests.rollout.proxy.rig import TOOLS, Rig

ARGUMENTS = '{"b": 1.0, "a": "\\u00e9\\n", "c": [1, true, null, {"d": 1e3, "e": 12345678901234567890}], "f": {}}'
CALL = f'<tool_call>\n{{"name": "look", "arguments": {ARGUMENTS}}}\n</tool_call>'
SAID = f"<think>\nwhy\n</think>\n\nI look.\n{CALL}\n{CALL}"
Message = dict[str, Any]


def calls(message: Message, change: Callable[[Message, int], Message]) -> Message:
    made = [change(json.loads(json.dumps(call)), at) for at, call in enumerate(message["tool_calls"])]
    return {**message, "tool_calls": made}


def arguments(message: Message, write: Callable[[Any], Any]) -> Message:
    def change(call: Message, _: int) -> Message:
        call["function"]["arguments"] = write(json.loads(call["function"]["arguments"]))
        return call

    return calls(message, change)


def javascript(value: Any) -> Any:
    """Change numbers as JSON.parse and JSON.stringify do: all are 64-bit floats, written without ``.0``."""
    if isinstance(value, dict):
        return {key: javascript(item) for key, item in value.items()}
    if isinstance(value, list):
        return [javascript(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(float(value)) if float(value).is_integer() else float(value)
    return value


def without(message: Message, *keys: str) -> Message:
    return {key: value for key, value in message.items() if key not in keys}


SPELLINGS: dict[str, Callable[[Message], Message]] = {
    "as it was sent": lambda m: m,
    "a name (LangChain, autogen)": lambda m: {**m, "name": "agent"},
    "ids of another form": lambda m: calls(m, lambda c, at: {**c, "id": f"toolu_{at}"}),
    "empty ids": lambda m: calls(m, lambda c, at: {**c, "id": ""}),
    "ids left out, calls numbered": lambda m: calls(m, lambda c, at: {**without(c, "id"), "index": at}),
    "arguments sorted and dense": lambda m: arguments(
        m, lambda a: json.dumps(a, sort_keys=True, separators=(",", ":"))
    ),
    "arguments as they look": lambda m: arguments(m, lambda a: json.dumps(a, ensure_ascii=False, indent=2)),
    "arguments of JavaScript": lambda m: arguments(m, lambda a: json.dumps(javascript(a))),
    "arguments as an object": lambda m: arguments(m, lambda a: a),
    "content in parts": lambda m: {**m, "content": [{"type": "text", "text": m["content"]}]},
    "white space trimmed": lambda m: {**m, "content": m["content"].strip()},
    "keys that say nothing": lambda m: {**m, "refusal": None, "audio": None, "function_call": None, "annotations": []},
    "reasoning dropped": lambda m: without(m, "reasoning_content"),
    "reasoning null": lambda m: {**m, "reasoning_content": None},
    "reasoning renamed": lambda m: {**without(m, "reasoning_content"), "reasoning": m["reasoning_content"]},
    "reasoning in front of the text": lambda m: {
        **without(m, "reasoning_content"), "content": f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}"
    },
}  # fmt: skip
CHANGES: dict[str, Callable[[Message], Message]] = {
    "another text": lambda m: {**m, "content": m["content"] + "!"},
    "no text": lambda m: {**m, "content": None},
    "a call dropped": lambda m: {**m, "tool_calls": m["tool_calls"][:1]},
    "all calls dropped": lambda m: without(m, "tool_calls"),
    "another function": lambda m: calls(
        m, lambda c, at: {**c, "function": {**c["function"], "name": "go"}} if at else c
    ),
    "another value": lambda m: arguments(m, lambda a: json.dumps({**a, "b": 2})),
    "true is not 1": lambda m: arguments(m, lambda a: json.dumps({**a, "b": True})),
    "a text is no number": lambda m: arguments(m, lambda a: json.dumps({**a, "b": "1.0"})),
    "an argument dropped": lambda m: arguments(m, lambda a: json.dumps({k: v for k, v in a.items() if k != "f"})),
    "another order of a list": lambda m: arguments(m, lambda a: json.dumps({**a, "c": a["c"][::-1]})),
    "no arguments": lambda m: arguments(m, lambda a: ""),
    "somebody else": lambda m: {"role": "user", "content": m["content"]},
}


async def played(rig: Rig, said: str, spell: Callable[[Message], Message], *, policy_tools: Any = TOOLS) -> Any:
    """Play two turns, sending the first back as ``spell`` writes it, and return the session."""
    session = rig.store.start(tools=policy_tools)
    rig.engine.script.extend([said, "done"])
    reply = (await rig.post(session.api_key, {"messages": USER})).json()["choices"][0]["message"]
    echo = spell(reply)
    results = [
        {"role": "tool", "tool_call_id": call.get("id") or "", "content": "seen", **({"name": "look"} if at else {})}
        for at, call in enumerate(echo.get("tool_calls") or ())
    ] or [{"role": "user", "content": "go on"}]
    answer = await rig.post(session.api_key, {"messages": [*USER, echo, *results]})
    assert answer.status_code == 200, answer.text
    return session


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_another_spelling_is_no_branch(spelling: str) -> None:
    async with Rig(ProxySettings(), "qwen3") as rig:
        session = await played(rig, SAID, SPELLINGS[spelling])
        assert session.branches == 0 and session.nodes[1].parent is session.nodes[0]
        (row,) = rig.store.export(session.session_id)
        assert row.token_ids.tolist()[: len(rig.engine.calls[1][0])] == rig.engine.calls[1][0]


@pytest.mark.parametrize("change", CHANGES)
async def test_negative_control_a_changed_turn_branches(change: str) -> None:
    async with Rig(ProxySettings(), "qwen3") as rig:
        session = await played(rig, SAID, CHANGES[change])
        assert session.branches == 1 and session.nodes[1].parent is None


@pytest.mark.parametrize("content", [None, "", " ", [], [{"type": "text", "text": ""}], "missing"])
@pytest.mark.parametrize("arguments", ["{}", "", None, {}, " { }", "missing"])
async def test_nothing_is_written_in_many_ways(content: Any, arguments: Any) -> None:
    def spell(message: Message) -> Message:
        (call,) = message["tool_calls"]
        function = {"name": "look"} if arguments == "missing" else {"name": "look", "arguments": arguments}
        kept = without(message, "content") if content == "missing" else {**message, "content": content}
        return {**kept, "tool_calls": [{**call, "function": function}]}

    async with Rig(ProxySettings(), "qwen3") as rig:
        said = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
        session = await played(rig, said, spell)
        assert session.branches == 0 and session.turns == 2


@pytest.mark.parametrize("calls", [[], None])
async def test_a_turn_without_calls(calls: Any) -> None:
    async with Rig(ProxySettings(), "qwen3") as rig:
        session = await played(rig, "hello", lambda m: {**m, "tool_calls": calls, "name": "agent"})
        assert session.branches == 0
        assert (await played(rig, "hello", lambda m: {**m, "content": "hallo"})).branches == 1


async def test_arguments_of_the_clients_own_that_are_no_json_are_compared_too() -> None:
    """A conversation may begin with calls that the client made up; in their comparison NaN equals NaN."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": NaN, "b": 1e999}'}}
    before = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "x"}]
    async with Rig(ProxySettings(), "qwen3") as rig:
        session = rig.store.start(tools=TOOLS)
        reply = (await rig.post(session.api_key, {"messages": before})).json()["choices"][0]["message"]
        call["function"]["arguments"] = '{"b":1e999,"a":NaN}'  # type: ignore[index]
        again = {"messages": [*before, reply, {"role": "user", "content": "y"}]}
        assert (await rig.post(session.api_key, again)).status_code == 200
        assert session.branches == 0


async def test_legacy_functions_are_refused_by_name() -> None:
    async with Rig(ProxySettings()) as rig:
        body = {"messages": USER, "functions": [TOOLS[0]["function"]]}
        answer = await rig.post(rig.settings.client_key, body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "functions"


async def test_a_legacy_call_is_refused_where_it_stands() -> None:
    async with Rig(ProxySettings()) as rig:
        echo = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}}
        answer = await rig.post(rig.settings.client_key, {"messages": [*USER, echo]})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages[1].function_call"


@pytest.mark.parametrize(
    "spelling", [name for name in SPELLINGS if "reasoning" in name or name.startswith("as it was")]
)
async def test_the_branch_policy_does_not_depend_on_how_the_reasoning_comes_back(spelling: str) -> None:
    """Qwen3's template removes reasoning before a later question, however the client spells the reasoning."""
    said = "<think>\nwhy\n</think>\n\nhello"
    for policy, branches in (("keep", 0), ("branch", 1)):
        settings: Any = ProxySettings(history_policy=policy)  # type: ignore[arg-type]
        async with Rig(settings, "qwen3") as rig:
            assert (await played(rig, said, SPELLINGS[spelling])).branches == branches
