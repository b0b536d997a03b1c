"""Unchanged real clients over TCP: openai (sync and async), litellm, and schemathesis with the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, cast

import httpx
import openai
import pytest

from tau2_lightning.rollout.proxy import limits as proxy_protocol
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import CALL, TOOLS, Rig

USER: Any = [{"role": "user", "content": "x"}]


class Served:
    """A rig in an event loop in its own thread, as in the trainer."""

    def __init__(self, settings: ProxySettings) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.rig = Rig(settings)
        self.call(self.rig.__aenter__())

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.call(self.rig.__aexit__())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served(ProxySettings(request_timeout=20, body_timeout=2, max_body_bytes=200_000))
    yield served
    served.close()


def test_openai_sync(served: Served) -> None:
    rig = served.rig
    session = rig.store.start()
    client = openai.OpenAI(base_url=rig.server.base_url, api_key=session.api_key, max_retries=0)
    rig.engine.script.extend([CALL, "done", "streamed"])
    tools: Any = TOOLS
    first = client.chat.completions.create(model="policy", messages=USER, tools=tools, tool_choice="auto", seed=1)
    assert first.choices[0].message.tool_calls
    (call,) = first.choices[0].message.tool_calls
    assert call.type == "function" and json.loads(call.function.arguments) == {"at": "é"}
    # The client's message object is sent back; its model_dump spells the message in another way.
    messages = [*USER, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "ok"}]
    second = client.chat.completions.create(model="policy", messages=messages, tools=tools)
    assert second.choices[0].message.content == "done" and second.usage and second.usage.total_tokens > 0
    messages += [second.choices[0].message, {"role": "user", "content": "again"}]
    stream = client.chat.completions.create(model="policy", messages=messages, tools=tools, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "streamed"
    assert session.branches == 0 and session.turns == 3
    assert client.models.list().data[0].id == "policy"
    plain = client.with_options(api_key=rig.settings.client_key)
    assert plain.completions.create(model="policy", prompt="a", max_tokens=3).choices[0].text == "hel"


def test_openai_errors(served: Served) -> None:
    client = openai.OpenAI(base_url=served.rig.server.base_url, api_key=served.rig.settings.client_key, max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="policy", messages=USER, temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="policy", messages=USER, reasoning_effort="low")
    assert unsupported.value.code == "unsupported_parameter"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


async def test_openai_async(served: Served) -> None:
    rig = served.rig
    session = rig.store.start(tools=TOOLS)
    rig.engine.script.extend([CALL, "bye"])
    client = openai.AsyncOpenAI(base_url=rig.server.base_url, api_key=session.api_key, max_retries=0)
    options: Any = {"include_usage": True}
    usage = None
    arguments = name = ""
    async for chunk in await client.chat.completions.create(
        model="policy", messages=USER, stream=True, stream_options=options
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                assert call.function
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert name == "look" and json.loads(arguments) == {"at": "é"}
    assert usage and usage.completion_tokens == session.sampled_tokens
    messages: Any = [*USER, session.nodes[0].reply, {"role": "tool", "content": "r"}]
    answer = await client.chat.completions.create(model="policy", messages=messages)
    assert answer.choices[0].message.content == "bye" and session.branches == 0
    await client.close()


@pytest.mark.slow  # litellm takes seconds to import
def test_litellm(served: Served) -> None:
    import litellm

    rig = served.rig
    session = rig.store.start()
    rig.engine.script.extend([CALL, "done", "abc"])
    where = {"model": "openai/policy", "api_base": rig.server.base_url, "api_key": session.api_key, "num_retries": 0}
    first = litellm.completion(messages=USER, tools=TOOLS, tool_choice="required", temperature=0.7, seed=3, **where)
    message = first.choices[0].message
    assert message.tool_calls[0].function.name == "look"
    messages = [*USER, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "ok"}]
    second = litellm.completion(messages=messages, tools=TOOLS, extra_body={"top_k": 5}, **where)
    assert second.choices[0].message.content == "done"
    messages += [second.choices[0].message.model_dump(), {"role": "user", "content": "stream"}]
    stream = litellm.completion(messages=messages, tools=TOOLS, stream=True, **where)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "abc"
    assert session.branches == 0 and session.turns == 3
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "x" * 150_000}], **where)


HOSTILE: list[Any] = [
    None, True, -1, 1e308, 2**63, "x", "\x00", [], {}, [[]], [None], {"": None}, [{"role": "user"}], "é" * 50,
    {"type": "function"}, [{"type": "function", "function": 3}], {"role": "tool", "content": {}}, [{}] * 5,
    [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}], "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "\ud7ff"}]}], {"enable_thinking": {"a": [1]}},
    {"chat_template": "{{ 1/0 }}"}, {"tokenize": True}, {"messages": []}, [{"role": "user", "content": "{% raw %}"}],
]  # fmt: skip
FIELDS = [
    "messages", "tools", "tool_choice", "n", "stream", "stream_options", "temperature", "top_p", "top_k", "max_tokens",
    "stop", "logprobs", "top_logprobs", "chat_template_kwargs", "response_format", "seed", "logit_bias", "model",
    "parallel_tool_calls", "stop_token_ids", "prompt", "reward", "turn", "metadata", "sampling", "task_id", "user",
]  # fmt: skip


@pytest.mark.parametrize("requests", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_requests(served: Served, requests: int) -> None:
    """Wrong types, bad JSON, huge bodies, forged keys, foreign sessions: each gets a 4xx, which shows no secrets."""
    rig, rng = served.rig, random.Random(7)
    victim = rig.store.start(task_id="secret-task")
    mine = rig.store.start()
    keys = [
        rig.settings.client_key,
        mine.api_key,
        mine.api_key[:-2] + "zz",
        "nobody",
        "tl-",
        f"tl-{victim.session_id}-",
        "é",
    ]
    root = rig.server.base_url.removesuffix("/v1")
    paths = ["/v1/chat/completions", "/v1/completions", "/sessions", "/nowhere", "/v1/chat/completions/"]
    paths += [f"/sessions/{victim.session_id}{tail}" for tail in ("", "/reward", "/end", "/export")]
    paths += ["/v1/chat/completions"] * 6
    seen: dict[int, int] = {}
    with httpx.Client(base_url=root, timeout=20) as client:
        for _ in range(requests):
            body: Any = {field: rng.choice(HOSTILE) for field in rng.sample(FIELDS, rng.randint(0, 6))}
            if rng.random() < 0.6:
                body = {**(body if rng.random() < 0.8 else {}), "messages": USER, "max_tokens": 4}
            raw = json.dumps(body).encode()
            shape = rng.random()
            if shape < 0.1:
                raw = raw[: rng.randint(0, len(raw))]
            elif shape < 0.15:
                raw = bytes(rng.randrange(256) for _ in range(rng.randint(0, 60)))
            elif shape < 0.17:
                raw = b"[" * 5000
            elif shape < 0.21:
                raw = b'{"user": "' + b"x" * 300_000 + b'"}'
            elif shape < 0.23:
                raw = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
            headers = {b"authorization": b"Bearer " + rng.choice(keys).encode("latin-1")}
            method = rng.choice(["POST"] * 9 + ["GET", "DELETE", "PUT"])
            answer = client.request(method, rng.choice(paths), content=raw, headers=headers)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (raw[:300], answer.text[:300])
            assert "secret-task" not in answer.text and victim.api_key not in answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert {200, 400, 401, 403, 404, 405, 413} <= set(seen) and not seen.keys() & {301, 302, 307}, seen
    assert victim.turns == 0 and victim.final_reward is None and not victim.closed
    assert victim.in_flight == mine.in_flight == 0


def test_slow_and_broken_connections(served: Served) -> None:
    rig = served.rig
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.settings.client_key}\r\n"
    with socket.create_connection(("127.0.0.1", rig.server.port), 10) as sock:
        sock.sendall((head + "Content-Length: 100\r\n\r\n{").encode())
        assert b" 408 " in sock.recv(4096).split(b"\r\n")[0]
    for garbage in (
        b"\x00" * 200,
        b"GET / HTTP/9.9\r\n\r\n",
        head.encode(),
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", rig.server.port), 10) as sock:
            sock.sendall(garbage)
    with httpx.Client(base_url=rig.server.base_url) as client:
        assert client.get("/models", headers={"authorization": f"Bearer {rig.settings.client_key}"}).status_code == 200


def answer_to(served: Served, *parts: bytes) -> bytes:
    """The status line of the answer to a connection that sends ``parts`` and then waits."""
    with socket.create_connection(("127.0.0.1", served.rig.server.port), 10) as sock:
        try:
            for part in parts:
                sock.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has already refused the request
        try:
            return sock.recv(4096).split(b"\r\n")[0]
        except ConnectionResetError:
            return b"closed"


def test_headers_have_limits_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers can be sent without a key, so their size and time are limited."""
    endless = [b"GET /v1/models HTTP/1.1\r\n", *(b"x-%d: " % n + b"y" * 1000 + b"\r\n" for n in range(2000))]
    assert answer_to(served, *endless) in (b"HTTP/1.1 431 Refused", b"closed")
    assert answer_to(served, b"GET /" + b"y" * 2_000_000) in (b"HTTP/1.1 431 Refused", b"closed")
    monkeypatch.setattr(proxy_protocol, "HEAD_SECONDS", 0.2)
    for start in (b"", b"GET /health HTTP/1.1\r\nx-a: b\r\n"):
        assert answer_to(served, start) == b"HTTP/1.1 408 Refused"
    whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    assert answer_to(served, whole) == b"HTTP/1.1 200 OK"
    upgrade = whole[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==\r\n\r\n"
    assert answer_to(served, upgrade) == b"HTTP/1.1 200 OK"  # the server ignores websocket upgrades


@pytest.mark.slow
def test_schemathesis(served: Served) -> None:
    """With generated input, no documented operation may answer 5xx or hang."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, settings

    rig = served.rig
    schema = schemathesis.openapi.from_asgi("/openapi.json", rig.app)
    headers = {"Authorization": f"Bearer {rig.settings.admin_key}"}
    url = rig.server.base_url.removesuffix("/v1")
    operations: list[Any] = [cast("Any", result).ok() for result in schema.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:

        @settings(
            max_examples=10,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],
        )
        @schemathesis_given(operation)
        def check(case: Any) -> None:
            answer = case.call(base_url=url, headers=headers, timeout=20)
            assert answer.status_code < 500, (case, answer.text)

        check()


def schemathesis_given(operation: Any) -> Any:
    """A decorator that calls a test with generated cases of one operation."""
    from hypothesis import given

    return given(case=operation.as_strategy())
