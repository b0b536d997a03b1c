"""Sessions over HTTP, tool choice, reaping, limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import Rollout
from tests.rollout.proxy.rig import CALL, TOOLS, Rig

USER = [{"role": "user", "content": "x"}]


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Rig(ProxySettings(request_timeout=5)) as rig:
        yield rig


async def call(rig: Rig, method: str, path: str, key: str, body: Any = None) -> Any:
    root = rig.server.base_url.removesuffix("/v1")
    return await rig.http.request(method, root + path, json=body, headers={"Authorization": f"Bearer {key}"})


async def test_the_life_of_a_session(rig: Rig) -> None:
    admin = rig.settings.admin_key
    started = await call(rig, "POST", "/sessions", admin, {"task_id": "t1", "metadata": {"a": 1}, "tools": TOOLS})
    assert started.status_code == 201
    key, path = started.json()["api_key"], f"/sessions/{started.json()['session_id']}"
    rig.engine.script.append(CALL)
    first = (await rig.post(key, {"messages": USER})).json()
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert (await call(rig, "POST", f"{path}/reward", key, {"reward": 0.25, "turn": first["id"]})).status_code == 200
    listed = (await call(rig, "GET", "/sessions", admin)).json()["data"]
    assert [(s["task_id"], s["turns"], s["metadata"]) for s in listed] == [("t1", 1, {"a": 1})]
    assert "api_key" not in json.dumps(listed)
    assert (await call(rig, "POST", f"{path}/end", key, {"reward": 1})).json()["closed"]
    assert (await rig.post(key, {"messages": USER})).status_code == 409
    assert (await call(rig, "POST", f"{path}/reward", key, {"reward": 5})).status_code == 409
    (row,) = (await call(rig, "GET", f"{path}/export", key)).json()["rows"]
    assert row["turns"][0]["reward"] == 1.25
    assert sum(row["loss_mask"]) == row["turns"][0]["end"] - row["turns"][0]["start"]
    assert (await call(rig, "DELETE", path, key)).status_code == 200
    assert (await call(rig, "GET", path, admin)).status_code == 404


async def test_a_session_key_opens_nothing_else(rig: Rig) -> None:
    mine, other = rig.store.start(), rig.store.start()
    await rig.post(other.api_key, {"messages": USER})
    for method, path in (
        ("GET", ""), ("GET", "/export"), ("POST", "/reward"), ("POST", "/end"), ("DELETE", ""),
    ):  # fmt: skip
        for key in (mine.api_key, rig.settings.client_key):
            answer = await call(rig, method, f"/sessions/{other.session_id}{path}", key, {"reward": 1})
            assert answer.status_code == 404, (method, path)
            missing = await call(rig, method, f"/sessions/{'0' * 24}{path}", key, {"reward": 1})
            assert missing.json()["error"]["code"] == answer.json()["error"]["code"]
    for method, path in (("GET", "/sessions"), ("POST", "/sessions"), ("GET", "/metrics")):
        assert (await call(rig, method, path, mine.api_key, {})).status_code == 403
        assert (await call(rig, method, path, "nonsense", {})).status_code == 401
    assert other.final_reward is None and not other.closed


async def test_models_health_and_metrics(rig: Rig) -> None:
    await rig.post(rig.settings.client_key, {"messages": USER})
    models = (await call(rig, "GET", "/v1/models", rig.settings.client_key)).json()
    assert [m["id"] for m in models["data"]] == ["policy"]
    assert (await call(rig, "GET", "/v1/models/other", rig.settings.client_key)).status_code == 404
    assert (await call(rig, "GET", "/health", "x")).json() == {"status": "ok"}
    text = (await call(rig, "GET", "/metrics", rig.settings.admin_key)).text
    assert 'proxy_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert "proxy_sampled_tokens_total 6.0" in text


async def test_forced_calls_use_a_grammar_only_where_they_may(rig: Rig) -> None:
    body = {"messages": USER, "tools": TOOLS, "tool_choice": "required"}
    rig.engine.script.extend([CALL, CALL])
    answer = (await rig.post(rig.settings.client_key, body)).json()["choices"][0]
    assert answer["message"]["tool_calls"][0]["function"]["name"] == "look"
    grammar = rig.engine.calls[0][1].structured
    assert grammar is not None
    tag = json.loads(grammar["structural_tag"])
    assert tag["format"]["at_least_one"] and [t["begin"] for t in tag["format"]["tags"]] == [
        '<tool_call>\n{"name": "look", "arguments": '
    ]
    session = rig.store.start()
    await rig.post(session.api_key, body)
    assert rig.engine.calls[1][1].structured is None
    (row,) = rig.store.export(session.session_id)
    assert row.turns[0].altered is None and row.loss_mask.any()


async def test_enforced_tool_choice_is_recorded_and_not_trained() -> None:
    async with Rig(ProxySettings(enforce_tool_choice=True)) as rig:
        session = rig.store.start(tools=TOOLS)
        rig.engine.script.append(CALL)
        named = {"type": "function", "function": {"name": "look"}}
        reply = (await rig.post(session.api_key, {"messages": USER, "tool_choice": named})).json()["choices"][0]
        await rig.post(session.api_key, {"messages": [*USER, reply["message"], {"role": "tool", "content": "y"}]})
        (row,) = rig.store.export(session.session_id)
        forced, free = row.turns
        assert (forced.altered, free.altered) == ("named:look", None)
        assert not row.loss_mask[forced.start : forced.end].any() and row.loss_mask[free.start : free.end].all()


@pytest.mark.parametrize(
    ("asked", "altered"),
    [
        ({}, None),
        ({"temperature": 0.7, "seed": 3, "stop": ["x"], "top_k": -1, "top_p": 1}, None),
        ({"temperature": 1.0}, "temperature=1.0"),
        ({"temperature": 0}, "temperature=0.0"),
        ({"top_p": 0.5, "top_k": 3}, "top_p=0.5, top_k=3"),
        ({"presence_penalty": 0.1}, "presence_penalty=0.1"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
    ],
)
async def test_turns_that_are_not_sampled_at_the_runs_temperature_and_whole_are_not_trained(asked, altered) -> None:
    async with Rig(ProxySettings(temperature=0.7)) as rig:
        session = rig.store.start()
        await rig.post(session.api_key, {"messages": USER, **asked})
        (row,) = rig.store.export(session.session_id)
    assert row.turns[0].altered == altered and row.sampled_tokens > 0
    assert row.loss_mask.any() == (altered is None)
    assert (Rollout("t", "g", 0, 1.0, (row,)).oldest_version == -1) == (altered is not None)


async def test_a_null_leaves_a_field_to_the_session() -> None:
    async with Rig(ProxySettings()) as rig:
        session = rig.store.start(sampling={"temperature": 0.25, "max_tokens": 7, "stop": "x"})
        await rig.post(session.api_key, {"messages": USER, "temperature": None, "max_tokens": None, "stop": "y"})
        sampling = rig.engine.calls[-1][1]
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.25, 7, ("y",))


def test_a_runs_temperature_is_what_requests_get_that_name_none() -> None:
    assert ProxySettings.of(load_config(["gconfig.temperature=0.7"])).temperature == 0.7


async def test_tool_choice_none_and_one_call_at_a_time(rig: Rig) -> None:
    key = rig.settings.client_key
    rig.engine.script.extend([CALL, f"{CALL}\n{CALL}"])
    none = (await rig.post(key, {"messages": USER, "tools": TOOLS, "tool_choice": "none"})).json()["choices"][0]
    assert none["message"]["content"] == CALL and none["finish_reason"] == "stop"
    one = await rig.post(key, {"messages": USER, "tools": TOOLS, "parallel_tool_calls": False})
    assert len(one.json()["choices"][0]["message"]["tool_calls"]) == 1


async def test_n_choices_and_the_one_that_is_used(rig: Rig) -> None:
    session = rig.store.start()
    rig.engine.script.extend(["a", "b", "c", "d"])
    choices = (await rig.post(session.api_key, {"messages": USER, "n": 3})).json()["choices"]
    assert [c["message"]["content"] for c in choices] == ["a", "b", "c"]
    used = choices[1]["message"]
    await rig.post(session.api_key, {"messages": [*USER, used, {"role": "user", "content": "go on"}]})
    (row,) = rig.store.export(session.session_id)
    assert [rig.tokenizer.decode(row.token_ids[t.start : t.end]) for t in row.turns] == ["b<|im_end|>", "d<|im_end|>"]
    assert session.branches == 0


async def test_limits() -> None:
    async with Rig(ProxySettings(max_body_bytes=2000, rate_limit=3.0, max_messages=3)) as rig:
        key = rig.settings.client_key
        assert (await rig.post(key, {"messages": USER, "user": "x" * 3000})).status_code == 413
        session = rig.store.start()
        statuses = [(await rig.post(session.api_key, {"messages": USER})).status_code for _ in range(8)]
        assert statuses[:3] == [200] * 3 and 429 in statuses
        assert (await rig.post(key, {"messages": USER * 4})).status_code in (400, 429)


def test_idle_sessions_are_reaped() -> None:
    now = [0.0]
    store = SessionStore(SessionSettings(idle_timeout=10), clock=lambda: now[0])
    idle, busy, fresh = store.start(), store.start(), None
    request = store.begin_call(busy)
    now[0] = 11.0
    fresh = store.start()
    assert store.reap() == [idle.session_id]
    assert store.authenticate(idle.api_key) is None and store.authenticate(fresh.api_key) is fresh
    assert store.counters["reaped"] == 1
    store.end_call(busy, request)
    now[0] = 22.0
    assert set(store.reap()) == {busy.session_id, fresh.session_id}
