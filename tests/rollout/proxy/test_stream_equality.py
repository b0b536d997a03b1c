"""For any sampled text and every parser, a joined stream equals the plain answer, and both can be written as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.chat_stream import ChatStream
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tests.cases.talk import FORMS, USER, assembled
from tests.rollout.chat.test_surrogates import mended, values
from tests.rollout.chat.test_tools import MORE, PIECES
from tests.rollout.proxy.fixtures import SPECIAL, ScriptedEngine, byte_tokenizer, template
from tests.rollout.proxy.rig import MARKS, TOOLS

pieces = st.one_of(
    st.sampled_from([*PIECES, *MORE, "<think>", "</think>", "\n\n", "<think>\nwhy\n</think>\n\n", '"name": ""']),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
texts = st.lists(pieces, max_size=8).map("".join)
_SERVICES: dict[tuple[str, str], ChatService] = {}


def service_of(name: str, parser: str) -> ChatService:
    if (name, parser) not in _SERVICES:
        tokenizer = byte_tokenizer(template(name), (*SPECIAL, *MARKS.get(parser, ())))
        form, engine = ChatFormat(tokenizer, parser), ScriptedEngine(tokenizer)
        _SERVICES[name, parser] = ChatService(SessionStore(), form, engine, ProxySettings())
    return _SERVICES[name, parser]


def answers(service: ChatService, said: Any, **body: Any) -> Any:
    """Return the plain answer after checking that the streamed one and both records are equal."""
    engine: Any = service.engine
    engine.script.clear()
    engine.script.extend([said, said])
    plain_session, session = (service.store.start(tools=TOOLS) for _ in range(2))
    body = {"messages": USER, **body}

    async def ask() -> tuple[Any, list[Any]]:
        plain = await service.complete(service.prepare(body, plain_session))
        stream = ChatStream(service, service.prepare({**body, "stream": True}, session))
        return plain, [orjson.loads(orjson.dumps(chunk)) async for chunk in stream.chunks()]

    answer, chunks = asyncio.run(ask())
    choice = orjson.loads(orjson.dumps(answer))["choices"][0]
    plain, (streamed, reason) = choice["message"], assembled(chunks)
    assert (streamed["content"], streamed["reasoning_content"]) == (
        plain["content"] or "",
        plain.get("reasoning_content") or "",
    )
    assert [c["function"] for c in streamed["tool_calls"]] == [c["function"] for c in plain.get("tool_calls", ())]
    assert reason == choice["finish_reason"]
    (one,), (other,) = plain_session.nodes, session.nodes
    assert one.invalid_format == other.invalid_format
    assert one.sampled.token_ids.tolist() == other.sampled.token_ids.tolist()
    for ended in (plain_session, session):
        service.store.end(ended.session_id)
    return plain


@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "mistral", "pythonic", "llama4_pythonic"])
@given(text=texts, stop=st.sampled_from([None, "call", "</"]), parallel=st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text(parser: str, text: str, stop: str | None, parallel: bool) -> None:
    more = {"stop": stop} if stop else {}
    answers(service_of("qwen3", parser), text, parallel_tool_calls=parallel, **more)


@given(text=texts)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_behind_a_prompt_that_opens_the_reasoning(text: str) -> None:
    answers(service_of("qwen3_5_think", "hermes"), text)


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_tokens(data: st.DataObject) -> None:
    """The tokens contain half characters, special tokens and tags at any place."""
    service = service_of("qwen3", "hermes")
    size = service.format.vocabulary_size
    tokens = data.draw(st.lists(st.integers(0, size - 1) | st.integers(size - 9, size - 1), min_size=1, max_size=24))
    answers(service, tokens)


@pytest.mark.parametrize("form", FORMS)
@given(arguments=st.dictionaries(st.text(max_size=4), values, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_arguments_are_served(form: str, arguments: Any) -> None:
    """The arguments also contain lone surrogates, which only escapes can write."""
    said = FORMS[form] % json.dumps(arguments)
    (call,) = answers(service_of("qwen3", form.removesuffix("_named")), said)["tool_calls"]
    assert orjson.loads(call["function"]["arguments"]) == orjson.loads(json.dumps(mended(arguments)))


@given(text=texts)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_under_a_grammar(text: str) -> None:
    service = service_of("qwen3", "llama3_json")
    forced = ChatService(service.store, service.format, service.engine, ProxySettings(enforce_tool_choice=True))
    answers(forced, text, tool_choice="required")
    answers(forced, f'[{{"name": "look", "parameters": {text}}}]', tool_choice="required")
    assert answers(forced, text, response_format={"type": "json_object"})["content"] == text
