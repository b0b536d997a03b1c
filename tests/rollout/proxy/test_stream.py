"""Streaming: the joined chunks equal the answer to a plain request, and the session records the same turn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import CALL, TOOLS, Rig, until

USER = [{"role": "user", "content": "x"}]


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Rig(ProxySettings(request_timeout=5), "qwen3") as rig:
        yield rig


async def events(rig: Rig, key: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed request."""
    out = []
    headers = {"Authorization": f"Bearer {key}"}
    async with rig.http.stream("POST", "/chat/completions", json={**body, "stream": True}, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        out.append(json.loads(line.removeprefix("data: ")))
    return out


def assemble(chunks: list[dict[str, Any]], index: int = 0) -> tuple[dict[str, Any], str | None]:
    """Join the chunks of one choice to a message and finish reason, as OpenAI's client does."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            reason = choice["finish_reason"] or reason
            delta = choice["delta"]
            for key in ("content", "reasoning_content"):
                message[key] += delta.get(key) or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    assert call["id"] and call["function"]["name"]
                    message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
                message["tool_calls"][call["index"]]["arguments"] += call["function"].get("arguments") or ""
    return message, reason


SAID = [
    "plain",
    "häß🎉 ünïcode 漢字",
    "<think>\nhmm, < tags\n\n</think>\n\nan answer",
    "<think>never closed",
    f"{CALL}",
    f"let me look\n{CALL}\n{CALL}",
    f"<think>\nwhy\n</think>\n\n{CALL}",
    '<tool_call>\n{"arguments": {"a": [1, {"b": "}"}]}, "name": "look"}\n</tool_call>',
    '<tool_call>\n{"name": "look", "arguments": {"a": "</"}}\n</tool_call>',
    '<tool_call>{"name": "look", "arguments": {"a": "\\"{[\\\\"}}</tool_call>',
    '<tool_call>\n{"name": "lo\n</tool_call> and more',
    "<tool_call>\nnot json at all\n</tool_call>",
    "<tool_call",
    "a < b <tool",
    '<tool_call>\n{"name": "look", "arguments": "a string"}\n</tool_call>',
    "",
]


@pytest.mark.parametrize("said", SAID)
async def test_chunks_add_up_to_the_plain_answer(rig: Rig, said: str) -> None:
    rig.engine.script.extend([said, said])
    body = {"messages": USER, "tools": TOOLS}
    plain = (await rig.post(rig.settings.client_key, body)).json()["choices"][0]
    streamed, reason = assemble(await events(rig, rig.settings.client_key, body))
    assert reason == plain["finish_reason"]
    assert streamed["content"] == (plain["message"]["content"] or "")
    assert streamed["reasoning_content"] == plain["message"].get("reasoning_content", "")
    expected = [call["function"] for call in plain["message"].get("tool_calls", ())]
    got = streamed["tool_calls"]
    assert [(c["name"], json.loads(c["arguments"])) for c in got] == [
        (c["name"], json.loads(c["arguments"])) for c in expected
    ]


async def test_text_comes_token_by_token_and_a_call_whole(rig: Rig) -> None:
    rig.engine.script.extend(["abcdefgh", CALL])
    words = await events(rig, rig.settings.client_key, {"messages": USER})
    assert len([c for c in words if c["choices"][0]["delta"].get("content")]) == 8
    calls = await events(rig, rig.settings.client_key, {"messages": USER, "tools": TOOLS})
    assert len([c for c in calls if c["choices"][0]["delta"].get("tool_calls")]) == 1


async def test_a_streamed_turn_is_recorded_and_continued(rig: Rig) -> None:
    session = rig.store.start(tools=TOOLS)
    rig.engine.version = 4
    rig.engine.script.extend([f"I look.\n{CALL}", "done"])
    message, _ = assemble(await events(rig, session.api_key, {"messages": USER}))
    call = message["tool_calls"][0]
    node = session.nodes[0]
    echo = {
        "role": "assistant",
        "content": message["content"],
        "tool_calls": [{"id": node.reply["tool_calls"][0]["id"], "type": "function", "function": call}],
    }
    await events(rig, session.api_key, {"messages": [*USER, echo, {"role": "tool", "content": "ok"}]})
    (row,) = rig.store.export(session.session_id)
    assert session.branches == 0 and len(row.turns) == 2
    assert set(row.versions[row.loss_mask].tolist()) == {4}
    assert rig.engine.calls[1][0] == row.token_ids.tolist()[: row.turns[1].start]


async def test_a_call_that_breaks_is_content_flagged_and_can_be_continued(rig: Rig) -> None:
    session = rig.store.start(tools=TOOLS)
    said = '<tool_call>\n{"name": "look", "arguments": {"a": oops}}\n</tool_call>'
    rig.engine.script.extend([said, "done"])
    message, reason = assemble(await events(rig, session.api_key, {"messages": USER}))
    assert message["content"] == said and not message["tool_calls"] and reason == "stop"
    assert session.nodes[0].invalid_format
    echo = {"role": "assistant", "content": message["content"]}
    await events(rig, session.api_key, {"messages": [*USER, echo, {"role": "user", "content": "what?"}]})
    assert session.branches == 0 and session.nodes[1].parent is session.nodes[0]


async def test_a_defect_in_a_stream_ends_it_with_an_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(rig.service.turns, "parse", broken)
    for n in (1, 2):
        headers = {"Authorization": f"Bearer {rig.settings.client_key}"}
        body = {"messages": USER, "stream": True, "n": n}
        async with rig.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        assert answer.status_code == 200 and '"internal_error"' in lines[-1]


async def test_usage_logprobs_stop_and_n(rig: Rig) -> None:
    key = rig.settings.client_key
    rig.engine.script.extend(["one STOP two", "a", "bb"])
    chunks = await events(rig, key, {"messages": USER, "stop": "STOP", "stream_options": {"include_usage": True}})
    assert assemble(chunks)[0]["content"] == "one "
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == len("one STOP")
    body = {"messages": USER, "n": 2, "logprobs": True, "top_logprobs": 2}
    chunks = await events(rig, key, body)
    assert sorted(assemble(chunks, at)[0]["content"] for at in (0, 1)) == ["a", "bb"]
    entries = [e for c in chunks for ch in c["choices"] if ch["logprobs"] for e in ch["logprobs"]["content"]]
    assert len(entries) == len("a") + len("bb") + 2  # plus two end-of-turn tokens
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)


async def test_a_failure_before_the_first_chunk_has_its_status(rig: Rig) -> None:
    rig.engine.fault = InfrastructureFault("engine", "crash")
    answer = await rig.post(rig.settings.client_key, {"messages": USER, "stream": True})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_crash"


async def test_leaving_a_stream_aborts_it_and_frees_the_session(rig: Rig) -> None:
    session = rig.store.start()
    rig.engine.script.append("x" * 1000)
    rig.engine.delay = 0.01
    headers = {"Authorization": f"Bearer {session.api_key}"}
    body = {"messages": USER, "stream": True}
    async with rig.http.stream("POST", "/chat/completions", json=body, headers=headers) as answer:
        async for line in answer.aiter_lines():
            if '"content":"x"' in line:
                break
    await until(lambda: not session.in_flight and bool(rig.engine.cancelled))
    assert session.turns == 0
    assert (await rig.post(session.api_key, {"messages": USER})).status_code == 200


async def test_text_completions_stream_what_they_return(rig: Rig) -> None:
    rig.engine.script.extend(["häßlich", "häßlich"])
    key = rig.settings.client_key
    plain = (await rig.post(key, {"prompt": "say", "max_tokens": 50}, "/completions")).json()
    assert plain["choices"][0]["text"] == "häßlich" and plain["object"] == "text_completion"
    headers = {"Authorization": f"Bearer {key}"}
    body = {"prompt": [1, 2, 3], "max_tokens": 50, "stream": True}
    async with rig.http.stream("POST", "/completions", json=body, headers=headers) as answer:
        lines = [line async for line in answer.aiter_lines() if line.startswith("data: {")]
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines) == "häßlich"
    assert isinstance(answer, httpx.Response) and rig.engine.calls[-1][0] == [1, 2, 3]
    assert 'proxy_completions_total{finish_reason="stop"} 2.0' in rig.service.metrics.render().decode()


async def test_log_probs_of_text_completions_are_at_the_same_offsets_in_a_stream(rig: Rig) -> None:
    rig.engine.script.extend(["häßlich", "häßlich"])
    key, body = rig.settings.client_key, {"prompt": "say", "max_tokens": 50, "logprobs": 1}
    plain = (await rig.post(key, body, "/completions")).json()["choices"][0]["logprobs"]
    assert plain["text_offset"] == [sum(map(len, plain["tokens"][:at])) for at in range(len(plain["tokens"]))]
    headers = {"Authorization": f"Bearer {key}"}
    async with rig.http.stream("POST", "/completions", json={**body, "stream": True}, headers=headers) as answer:
        chunks = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: {")]
    streamed = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks]
    assert len(streamed) > 1 and [offset for part in streamed for offset in part] == plain["text_offset"]
