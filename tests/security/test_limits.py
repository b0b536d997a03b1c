"""Limits in bytes: what a client sends may not fill the memory, neither at once nor kept in a cache or a session."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tau2_lightning.rollout.chat import delta as delta_module
from tau2_lightning.rollout.chat import format as format_module
from tau2_lightning.rollout.chat.byte_cache import ENTRY_BYTES
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.proxy import prompts as prompts_module
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionSettings, SessionStore
from tests.rollout.proxy.fixtures import TINY, byte_tokenizer
from tests.rollout.proxy.rig import TOOLS, Rig, until

USER: Any = {"role": "user", "content": "x"}
CALLING: Any = {
    "role": "assistant", "content": "",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}  # fmt: skip


def result(text: str) -> list[Any]:
    return [{"role": "tool", "tool_call_id": "c", "content": text}]


def test_a_long_tool_output_costs_what_its_tokens_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """67 kB of text: four bytes a token, without the text. It was forty, and the text beside it."""
    chat = ChatFormat(byte_tokenizer(TINY), "hermes")
    long = "abcdefgh" * 8375
    tokens = chat.render_delta(CALLING, result(long), ended=True)
    assert len(tokens) > len(long)
    assert chat.cached_bytes["deltas"] == 4 * len(tokens) + ENTRY_BYTES
    assert chat.render_delta(CALLING, result(long), ended=True) == tokens


def test_many_tool_outputs_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_module, "DELTA_BYTES", 100_000)
    chat = ChatFormat(byte_tokenizer(TINY), "hermes")
    held = []
    for number in range(300):
        chat.render_delta(CALLING, result(f"{number} " + "y" * 2000), ended=True)
        held.append(chat.cached_bytes["deltas"])
    assert max(held) <= 100_000 and held[-1] > 80_000, "it is full, and not fuller"
    chat.render_delta(CALLING, result("z" * 50_000), ended=True)
    assert chat.cached_bytes["deltas"] == held[-1], "what is larger than the whole cache is not kept"


def test_many_prompts_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts that are longer than the model's context, too: they are refused after they were encoded."""
    monkeypatch.setattr(format_module, "PROMPT_BYTES", 200_000)
    chat = ChatFormat(byte_tokenizer(TINY), "hermes")
    for number in range(50):
        prompt = chat.render([{"role": "user", "content": f"{number} " + "y" * 10_000}])
        assert chat.cached_bytes["prompts"] <= 200_000
    assert chat.render([{"role": "user", "content": "49 " + "y" * 10_000}]) == prompt


async def test_tool_lists_and_words_of_the_template_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "TOOL_BYTES", 1_000_000)
    async with Rig(ProxySettings()) as rig:
        for number in range(40):
            tool: Any = orjson.loads(orjson.dumps(TOOLS[0]))
            tool["function"]["description"] = f"{number} " + "d" * 4000
            body = {"messages": [USER], "tools": [tool], "chat_template_kwargs": {"word": f"{number} " + "w" * 4000}}
            assert (await rig.post(rig.settings.client_key, body)).status_code == 200
        assert 0 < rig.service.prompts.cached_bytes["tools"] <= 1_000_000
        session = rig.store.start()
        assert (await rig.post(session.api_key, body)).status_code == 200
        assert len(session.nodes[0].setting) <= 32, "a digest, however long the words are"


async def test_the_bytes_of_caches_are_a_metric() -> None:
    async with Rig(ProxySettings()) as rig:
        await rig.post(rig.settings.client_key, {"messages": [USER], "tools": TOOLS})
        headers = {"Authorization": f"Bearer {rig.settings.admin_key}"}
        text = (await rig.http.get(rig.server.base_url.removesuffix("/v1") + "/metrics", headers=headers)).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("proxy_cache_bytes"))
        assert set(values) == {f'proxy_cache_bytes{{cache="{name}"}}' for name in ("prompts", "deltas", "tools")}
        assert float(values['proxy_cache_bytes{cache="prompts"}']) > 0
        assert "proxy_body_bytes" in text


async def test_a_session_that_holds_too_much_takes_no_more() -> None:
    """Branches of one long message each: every one is recorded as a turn."""
    async with Rig(ProxySettings()) as rig:
        rig.store.settings = SessionSettings(max_bytes=300_000)
        session, statuses = rig.store.start(), []
        for number in range(40):
            body = {"messages": [{"role": "user", "content": f"{number} " + "b" * 8000, "kept": "k" * 2000}]}
            answer = await rig.post(session.api_key, body)
            statuses.append(answer.status_code)
        assert statuses[:2] == [200, 200] and statuses[-1] == 409 and answer.json()["error"]["code"] == "session_closed"
        assert 300_000 <= session.held_bytes < 450_000, "one turn beyond the limit at most"
        held = len(orjson.dumps([[*node.messages, node.reply] for node in session.nodes]))
        assert session.held_bytes > held
        assert (await rig.post(rig.store.start().api_key, body)).status_code == 200, "another session goes on"


async def test_failed_requests_count_too() -> None:
    """A client that sends long requests and leaves: each stays noted, since its episode must not be scored."""
    async with Rig(ProxySettings()) as rig:
        rig.store.settings = SessionSettings(max_bytes=100_000)
        rig.engine.hold = asyncio.Event()
        session = rig.store.start()
        for number in range(8):
            body = {"messages": [{"role": "user", "content": f"{number} " + "b" * 20_000}]}
            asking = asyncio.create_task(rig.post(session.api_key, body))
            await asyncio.sleep(0.1)
            asking.cancel()
            await until(lambda: session.in_flight == 0)
        assert session.held_bytes >= 100_000 and len(session.requests) < 8
        rig.engine.hold.set()
        assert (await rig.post(session.api_key, {"messages": [USER]})).status_code == 409


async def test_bodies_of_all_requests_together_have_a_limit() -> None:
    async with Rig(ProxySettings(max_held_bytes=50_000)) as rig:
        rig.engine.hold = asyncio.Event()
        body = {"messages": [{"role": "user", "content": "b" * 20_000}], "max_tokens": 1}
        running = [asyncio.create_task(rig.post(rig.settings.client_key, body)) for _ in range(2)]
        await until(lambda: rig.engine.held == 2)
        refused = await rig.post(rig.settings.client_key, body)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "overloaded"
        rig.engine.hold.set()
        assert [one.status_code for one in await asyncio.gather(*running)] == [200, 200]
        assert (await rig.post(rig.settings.client_key, body)).status_code == 200, "their bytes are free again"
        assert rig.service.meter._held == 0


@pytest.mark.parametrize(
    ("field", "longest", "longer"),
    [("stop", "s" * 256, "s" * 257), ("stop", ["s" * 256], ["s" * 257]), ("stop_token_ids", [1] * 1024, [1] * 1025)],
)
async def test_stop_words_and_tokens_have_limits(field: str, longest: Any, longer: Any) -> None:
    """Each token of a stream is compared with them."""
    async with Rig(ProxySettings()) as rig:
        answer = await rig.post(rig.settings.client_key, {"messages": [USER], field: longer})
        assert answer.status_code == 400 and field in answer.json()["error"]["param"]
        assert (await rig.post(rig.settings.client_key, {"messages": [USER], field: longest})).status_code == 200


def test_an_ordinary_session_is_far_from_its_limit() -> None:
    """Negative control: a hundred turns of a long dialogue are a twentieth of it."""
    assert SessionStore().settings.max_bytes > 100 * (20_000 + 12 * 4_000) * 20
