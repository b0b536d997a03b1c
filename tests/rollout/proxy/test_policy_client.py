"""The policy client over HTTP and the direct one give the same answers, refusals, counts and recorded tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.episode.client import HttpPolicyClient, PolicyClient, RequestRejected
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.tree import Session
from tests.rollout.proxy.rig import CALL, TOOLS, Rig, until

USER: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
FORMS = pytest.mark.parametrize("form", ["http", "direct"])
COUNTED = (
    "proxy_requests_total", "proxy_request_seconds_count", "proxy_in_flight", "proxy_client_disconnects_total",
    "proxy_sampled_tokens_total", "proxy_completions_total", "proxy_invalid_format_total",
)  # fmt: skip


@dataclass
class Front:
    """A rig with clients of one form and the outcomes of their calls."""

    rig: Rig
    client: Callable[[str], PolicyClient]
    outcomes: list[Any] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)

    async def ask(self, key: str, body: Mapping[str, Any], client: PolicyClient | None = None) -> Any:
        """Return the message or the error, and record it in a form that can be compared between runs."""
        try:
            message = await (client or self.client(key)).complete(body)
        except RequestRejected as error:
            outcome: Any = ("rejected", error.code)
        except InfrastructureFault as fault:
            outcome = ("fault", f"{fault.component}:{fault.cause}")
        else:
            self.outcomes.append((message["content"], [call["function"] for call in message.get("tool_calls", ())]))
            return message
        self.outcomes.append(outcome)
        return outcome

    def export(self, session: Session) -> None:
        for row in self.rig.store.export(session.session_id):
            values = (row.token_ids, row.loss_mask, row.logprobs, row.versions)
            self.rows.append([len(row.turns), session.branches, *(list(value) for value in values)])

    def idle(self) -> bool:
        return self.counts()["proxy_in_flight",] == 0

    def counts(self) -> dict[Any, float]:
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for metric in self.rig.service.metrics.registry.collect()
            for sample in metric.samples
            if sample.name in COUNTED and sample.labels.get("le") is None
        }


@asynccontextmanager
async def front(form: str, timeout: float = 20, **settings: Any) -> AsyncIterator[Front]:
    async with Rig(ProxySettings(**settings)) as rig:
        url = rig.server.base_url
        async with episode_access(rig.service, url, over_http=form == "http", timeout=timeout) as access:
            assert access.base_url == url
            yield Front(rig, access.client)


Scenario = Callable[[Front], Awaitable[None]]


async def a_dialogue(at: Front) -> None:
    session = at.rig.store.start(tools=TOOLS)
    at.rig.engine.script.extend([CALL, "done"])
    messages = list(USER)
    reply = await at.ask(session.api_key, {"messages": messages, "temperature": 0.5})
    messages += [reply, {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "seen"}]
    await at.ask(session.api_key, {"messages": messages, "temperature": 0.5})
    at.export(session)
    assert [call[1].temperature for call in at.rig.engine.calls] == [0.5, 0.5]


async def wrong_requests(at: Front) -> None:
    session = at.rig.store.start()
    await at.ask(session.api_key, {"messages": USER, "temperature": 9})
    await at.ask(session.api_key, {"messages": USER, "reasoning_effort": "low"})
    await at.ask(session.api_key, {})
    at.rig.engine._max_model_len = 3
    await at.ask(session.api_key, {"messages": USER})
    assert session.turns == 0 and not session.in_flight


async def keys_that_open_nothing(at: Front) -> None:
    session = at.rig.store.start()
    await at.ask(session.api_key[:-2] + "zz", {"messages": USER})
    await at.ask(at.rig.settings.client_key, {"messages": USER})  # this key is accepted, but nothing is recorded
    at.rig.store.abort(session.session_id)
    await at.ask(session.api_key, {"messages": USER})


async def a_closed_session(at: Front) -> None:
    session = at.rig.store.start()
    at.rig.store.close(session.session_id)
    await at.ask(session.api_key, {"messages": USER})


async def a_session_aborted_under_a_call(at: Front) -> None:
    session = at.rig.store.start()
    at.rig.engine.delay = 60
    call = asyncio.create_task(at.ask(session.api_key, {"messages": USER}))
    await until(lambda: at.rig.engine.held == 1)
    at.rig.store.abort(session.session_id)
    await call
    assert at.rig.engine.cancelled == 1


async def more_calls_than_the_limit(at: Front) -> None:
    at.rig.engine.hold = asyncio.Event()
    keys = [at.rig.store.start().api_key for _ in range(3)]
    first = [asyncio.create_task(at.ask(key, {"messages": USER})) for key in keys[:2]]
    await until(lambda: at.rig.engine.held == 2)
    await at.ask(keys[2], {"messages": USER})
    at.rig.engine.hold.set()
    await asyncio.gather(*first)
    await at.ask(keys[2], {"messages": USER})


async def calls_faster_than_the_rate(at: Front) -> None:
    session = at.rig.store.start()
    for _ in range(3):
        await at.ask(session.api_key, {"messages": USER})


async def engine_failures(at: Front) -> None:
    session = at.rig.store.start()
    crash, late = InfrastructureFault("engine", "crash"), DeadlineExceeded("engine", 5, "sampling")
    for fault in (crash, late, ZeroDivisionError("a defect")):
        at.rig.engine.fault = fault
        await at.ask(session.api_key, {"messages": USER})
    assert session.turns == 0 and not session.in_flight


async def an_answer_that_takes_too_long(at: Front) -> None:
    session = at.rig.store.start()
    at.rig.engine.delay = 60
    client = at.client(session.api_key)
    client._timeout = 0.5
    await at.ask(session.api_key, {"messages": USER}, client)
    await until(lambda: at.rig.engine.cancelled == 1 and not session.in_flight)  # the session is free for the next call
    at.rig.engine.delay = 0
    await at.ask(session.api_key, {"messages": USER})
    at.export(session)


MANY: dict[str, Any] = {"max_concurrent": 2}
SCENARIOS: list[tuple[Scenario, dict[str, Any], list[Any], dict[str, int]]] = [
    (a_dialogue, {}, [(None, [{"name": "look", "arguments": '{"at": "é"}'}]), ("done", [])], {"200": 2}),
    (
        wrong_requests,
        {},
        [("rejected", code) for code in ("invalid_request_error", "unsupported_parameter", "invalid_request_error")]
        + [("rejected", "context_length_exceeded")],
        {"400": 4},
    ),
    (
        keys_that_open_nothing,
        {},
        [("fault", "proxy:invalid_api_key"), ("hello", []), ("fault", "proxy:invalid_api_key")],
        {"401": 2, "200": 1},
    ),
    (a_closed_session, {}, [("fault", "proxy:session_closed")], {"409": 1}),
    (a_session_aborted_under_a_call, {}, [("fault", "proxy:session_aborted")], {"409": 1}),
    (more_calls_than_the_limit, MANY, [("fault", "proxy:overloaded"), *[("hello", [])] * 3], {"503": 1, "200": 3}),
    (
        calls_faster_than_the_rate,
        {"rate_limit": 0.01},
        [("hello", []), *[("fault", "proxy:rate_limit_exceeded")] * 2],
        {"200": 1, "429": 2},
    ),
    (
        engine_failures,
        {},
        [("fault", name) for name in ("engine:crash", "engine:timeout", "proxy:internal_error")],
        {"503": 1, "504": 1, "500": 1},
    ),
    (an_answer_that_takes_too_long, {}, [("fault", "engine:timeout"), ("hello", [])], {"499": 1, "200": 1}),
]


@pytest.mark.parametrize(("scenario", "settings", "outcomes", "statuses"), SCENARIOS)
async def test_both_forms_are_answered_refused_counted_and_recorded_alike(
    scenario: Scenario, settings: dict[str, Any], outcomes: list[Any], statuses: dict[str, int]
) -> None:
    seen = []
    for form in ("http", "direct"):
        async with front(form, **settings) as at:
            await scenario(at)
            await until(at.idle)
            assert bool(at.rig.server._server.server_state.total_requests) == (form == "http")
            assert at.outcomes == outcomes
            seen.append((at.counts(), at.rows))
    (counts, rows), direct = seen
    assert (counts, rows) == direct
    route = "/v1/chat/completions"
    for status, count in statuses.items():
        assert counts["proxy_requests_total", ("route", route), ("status", status)] == count
    assert counts["proxy_request_seconds_count", ("route", route)] == sum(statuses.values())


@FORMS
async def test_a_callers_changes_do_not_reach_what_is_recorded(form: str) -> None:
    """A client may change what it passed or received; the session has copies, as if all had been serialised."""
    async with front(form) as at:
        rig, session = at.rig, at.rig.store.start()
        client = at.client(session.api_key)
        tools: list[Any] = json.loads(json.dumps(TOOLS))
        body: dict[str, Any] = {"messages": [dict(USER[0])], "tools": tools, "chat_template_kwargs": {"a": [1]}}
        rig.engine.script.append(CALL)
        rig.engine.hold = asyncio.Event()
        call = asyncio.create_task(client.complete(body))
        await until(lambda: rig.engine.held == 1)
        body["messages"][0]["content"] = "changed while it was at work"
        tools[0]["function"]["name"] = "changed"
        rig.engine.hold.set()
        reply = await call
        kept: dict[str, Any] = {**reply, "tool_calls": [dict(reply["tool_calls"][0])]}
        reply["content"] = "changed afterwards"
        reply["tool_calls"][0]["function"] = {"name": "changed", "arguments": "{}"}
        (node,) = session.nodes
        assert node.messages == USER and node.reply == {**kept, "content": None}
        assert node.reply["tool_calls"][0]["function"]["name"] == "look"
        result = {"role": "tool", "tool_call_id": kept["tool_calls"][0]["id"], "content": "seen"}
        await client.complete({**body, "messages": [*USER, kept, result], "tools": TOOLS})
        assert session.branches == 0 and session.turns == 2
        assert "changed" not in rig.tokenizer.decode(rig.engine.calls[1][0])


@FORMS
async def test_what_is_not_json_is_refused(form: str) -> None:
    async with front(form) as at:
        key = at.rig.store.start().api_key
        assert await at.ask(key, {"messages": USER, "seed": object()}) == ("rejected", "invalid_json")
        assert await at.ask(key, {"messages": [{**USER[0], "x": object()}]}) == ("rejected", "invalid_json")


async def test_a_direct_call_has_no_stream() -> None:
    async with front("direct") as at:
        key = at.rig.store.start().api_key
        assert await at.ask(key, {"messages": USER, "stream": True}) == ("rejected", "unsupported_parameter")


@FORMS
async def test_a_caller_that_is_cancelled_ends_the_generation(form: str) -> None:
    async with front(form) as at:
        session = at.rig.store.start()
        at.rig.engine.delay = 60
        call = asyncio.create_task(at.client(session.api_key).complete({"messages": USER}))
        await until(lambda: at.rig.engine.held == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: at.rig.engine.cancelled == 1 and not session.in_flight)
        await until(lambda: at.counts()["proxy_client_disconnects_total",] == 1)


async def test_a_proxy_that_cannot_be_reached_is_a_fault() -> None:
    async with aiohttp.ClientSession() as http:
        with pytest.raises(InfrastructureFault, match="proxy: connection"):
            await HttpPolicyClient("http://127.0.0.1:1/v1", "x", http, timeout=5).complete({})


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{", "proxy: connection"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 6\r\n\r\n<html>", "proxy: http_502: <html>"),
        (b"", "proxy: connection"),
    ],
)
async def test_an_answer_that_is_not_our_proxys_is_a_fault(answer: bytes, fault: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        stack.callback(server.close)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(InfrastructureFault, match=fault):
            await HttpPolicyClient(f"http://127.0.0.1:{port}/v1", "x", http, timeout=5).complete({})
        assert http.connector is not None and not http.connector._acquired  # no connection may stay open


@FORMS
async def test_text_that_json_cannot_hold_is_the_agents_mistake(form: str) -> None:
    async with front(form) as at:
        session = at.rig.store.start()
        await at.ask(session.api_key, {"messages": [{"role": "user", "content": "\ud800"}]})
        assert at.outcomes == [("rejected", "invalid_json")] and not session.in_flight and not session.turns
