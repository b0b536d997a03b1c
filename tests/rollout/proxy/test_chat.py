"""The proxy over real TCP with a scripted engine: answers to clients and records of sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import CALL, TOOLS, Rig, until


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Rig(ProxySettings(max_new_tokens=4000, request_timeout=5)) as rig:
        yield rig


async def test_a_dialogue_is_one_token_exact_row(rig: Rig) -> None:
    session = rig.store.start(task_id="t", group_id="g", tools=TOOLS)
    rig.engine.script.extend([CALL, "All done."])
    messages: list[dict[str, Any]] = [{"role": "user", "content": "my phone is broken"}]
    first = (await rig.post(session.api_key, {"model": "m", "messages": messages})).json()
    choice = first["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("look", {"at": "é"})
    messages += [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "nothing there"}]
    rig.engine.version = 7
    second = (await rig.post(session.api_key, {"messages": messages})).json()
    assert second["choices"][0]["message"] == {"role": "assistant", "content": "All done."}
    assert second["choices"][0]["finish_reason"] == "stop"

    rig.store.set_reward(session.session_id, 1.0)
    (row,) = rig.store.export(session.session_id)
    # The engine's second prompt starts with the first prompt and everything sampled from it.
    (first_prompt, *_), (second_prompt, *_) = rig.engine.calls
    sampled = [*rig.tokenizer.encode(CALL, add_special_tokens=False), rig.tokenizer.eos_token_id]
    assert second_prompt[: len(first_prompt) + len(sampled)] == first_prompt + sampled
    assert row.token_ids.tolist()[: len(second_prompt)] == second_prompt
    text = rig.tokenizer.decode(row.token_ids)
    assert text == rig.format.render_text(
        [*messages, {"role": "assistant", "content": "All done."}], TOOLS
    ).removesuffix("\n<|im_start|>assistant\n")
    assert [rig.tokenizer.decode(row.token_ids[t.start : t.end]) for t in row.turns] == [
        CALL + "<|im_end|>",
        "All done.<|im_end|>",
    ]
    assert row.loss_mask.sum() == sum(t.end - t.start for t in row.turns)
    assert set(row.versions[row.loss_mask].tolist()) == {0, 7} and set(row.versions[~row.loss_mask]) == {-1}
    assert [t.reward for t in row.turns] == [0.0, 1.0]
    (outside,) = rig.store.export_json(session.session_id)
    assert [turn["discounted_return"] for turn in outside["turns"]] == [0.5, 1.0]
    assert session.branches == 0


async def test_a_malformed_call_is_content_flagged_and_penalised(rig: Rig) -> None:
    session = rig.store.start(tools=TOOLS)
    rig.engine.script.append('<tool_call>\n{"name": "look"\n</tool_call>')
    answer = (await rig.post(session.api_key, {"messages": [{"role": "user", "content": "hi"}]})).json()
    assert answer["choices"][0]["message"]["content"].startswith("<tool_call>")
    assert "tool_calls" not in answer["choices"][0]["message"]
    rig.store.set_reward(session.session_id, 1.0)
    (row,) = rig.store.export(session.session_id)
    assert row.turns[0].invalid_format and row.turns[0].reward == 1.0
    (outside,) = rig.store.export_json(session.session_id)
    assert outside["turns"][0]["reward"] == 0.75


async def test_rewritten_history_branches(rig: Rig) -> None:
    session = rig.store.start()
    messages: list[dict[str, Any]] = [{"role": "user", "content": "one"}]
    reply = (await rig.post(session.api_key, {"messages": messages})).json()["choices"][0]["message"]
    kept = [*messages, reply, {"role": "user", "content": "two"}]
    edited = [*messages, {"role": "assistant", "content": "I never said that"}, {"role": "user", "content": "two"}]
    assert (await rig.post(session.api_key, {"messages": kept})).status_code == 200
    assert session.branches == 0
    assert (await rig.post(session.api_key, {"messages": edited})).status_code == 200
    assert session.branches == 1
    rows = rig.store.export(session.session_id)
    assert len(rows) == 2
    assert "I never said that" in rig.tokenizer.decode(rows[0].token_ids)
    assert "I never said that" not in rig.tokenizer.decode(rows[1].token_ids)


async def test_keys_open_only_what_they_should(rig: Rig) -> None:
    session = rig.store.start()
    body = {"messages": [{"role": "user", "content": "x"}]}
    forged = session.api_key[:-1] + ("a" if session.api_key[-1] != "a" else "b")
    allowed = (session.api_key, rig.settings.client_key, rig.settings.admin_key)
    for key, status in [*((key, 200) for key in allowed), (forged, 401), ("x", 401)]:
        assert (await rig.post(key, body)).status_code == status
    assert (await rig.http.post("/chat/completions", json=body)).status_code == 401
    assert session.turns == 1
    rig.store.end(session.session_id)
    answer = await rig.post(session.api_key, body)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


async def test_errors_have_openai_shape(rig: Rig) -> None:
    key = rig.settings.client_key
    hello = [{"role": "user", "content": "x"}]
    rig.engine._max_model_len = 64
    answer = await rig.post(key, {"messages": [{"role": "user", "content": "x" * 100}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    for body, param in (
        ({"messages": []}, "messages"),
        ({"messages": hello, "temperature": "hot"}, "temperature"),
        ({"messages": hello, "best_of": 3}, "best_of"),
        ({"messages": hello, "n": 0}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ):
        answer = await rig.post(key, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    for fault, status in (
        (DeadlineExceeded("engine", 5, "sampling"), 504),
        (InfrastructureFault("engine", "crash"), 503),
    ):
        rig.engine.fault = fault
        answer = await rig.post(key, {"messages": hello})
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_max_tokens_is_what_is_left(rig: Rig) -> None:
    rig.engine._max_model_len = 60
    body = {"messages": [{"role": "user", "content": "x"}]}
    await rig.post(rig.settings.client_key, body)
    await rig.post(rig.settings.client_key, {**body, "max_tokens": 3})
    (prompt, free, _), (_, asked, _) = rig.engine.calls
    assert free.max_tokens == 60 - len(prompt) and asked.max_tokens == 3


async def test_ignore_eos_ignores_every_end_of_turn(rig: Rig) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "stop_token_ids": [7]}
    await rig.post(rig.settings.client_key, body)
    await rig.post(rig.settings.client_key, {**body, "ignore_eos": True})
    (_, ended, _), (_, endless, _) = rig.engine.calls
    assert set(ended.stop_token_ids) == {7, rig.tokenizer.eos_token_id}
    assert endless.stop_token_ids == (7,) and endless.ignore_eos


async def test_a_truncated_turn_is_closed_by_the_template(rig: Rig) -> None:
    session = rig.store.start()
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
    reply = (await rig.post(session.api_key, {"messages": messages, "max_tokens": 2})).json()["choices"][0]
    assert reply["finish_reason"] == "length" and reply["message"]["content"] == "he"
    await rig.post(session.api_key, {"messages": [*messages, reply["message"], {"role": "user", "content": "y"}]})
    (row,) = rig.store.export(session.session_id)
    text = rig.tokenizer.decode(row.token_ids)
    assert "he<|im_end|>\n<|im_start|>user\ny<|im_end|>" in text
    first = row.turns[0]
    assert not row.loss_mask[first.end : row.turns[1].start].any() and row.loss_mask[first.start : first.end].all()


async def test_client_that_leaves_aborts_the_generation(rig: Rig) -> None:
    session = rig.store.start()
    rig.engine.delay = 60
    with pytest.raises(httpx.ReadTimeout):
        await rig.http.post(
            "/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}]},
            headers={"Authorization": f"Bearer {session.api_key}"},
            timeout=httpx.Timeout(20, read=1.0),
        )
    await until(lambda: bool(rig.engine.cancelled))
    assert session.turns == 0
    await until(lambda: not session.in_flight)


async def test_aborting_a_session_answers_409(rig: Rig) -> None:
    session = rig.store.start()
    rig.engine.delay = 5
    pending = asyncio.create_task(rig.post(session.api_key, {"messages": [{"role": "user", "content": "x"}]}))
    await until(lambda: rig.engine.held == 1 and bool(session.in_flight))
    rig.store.abort(session.session_id)
    answer = await pending
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_aborted")
    assert rig.engine.cancelled == 1


async def test_a_taken_port_is_a_config_error(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.port"):
        await ProxyServer(rig.app, port=rig.server.port).start()
