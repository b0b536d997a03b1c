"""The proxy in front of real vLLM: exported log-probs against transformers, versions, grammars, streams, stop strings,
clients that leave, and the proxy as a program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import pytest_asyncio

from tau2_lightning.rollout.chat.pythonic import PythonicParser
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.cases.test_a08_forced_choice_with_definitions import CASES
from tests.e2e.front import Front
from tests.e2e.reference_models import ReferenceModels

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

TOLERANCE = 1e-4
SESSIONS = 24
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "check_line",
            "parameters": {
                "type": "object",
                "properties": {"line": {"enum": ["L1", "L2"]}, "deep": {"type": "boolean"}},
                "required": ["line", "deep"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest_asyncio.fixture(loop_scope="session")
async def front(engine_pool: EnginePool, reference: ReferenceModels) -> AsyncIterator[Front]:
    async with Front(engine_pool, reference) as front:
        yield front


async def talk(front: Front, seed: int, turns: int = 4) -> Any:
    """A conversation with turns of random length; some are cut short, some are streamed."""
    rng = random.Random(seed)
    session = front.store.start(tools=TOOLS if seed % 2 else None)
    client = front.client(session.api_key)
    messages: list[Any] = [{"role": "user", "content": f"my phone {seed} is broken " * rng.randint(1, 12)}]
    for turn in range(turns):
        limit = rng.choice([3, 20, 64])
        if rng.random() < 0.4:
            content, calls = "", []
            stream = await client.chat.completions.create(
                model="policy", messages=messages, max_tokens=limit, stream=True
            )
            async for chunk in stream:
                content += chunk.choices[0].delta.content or ""
                calls += chunk.choices[0].delta.tool_calls or []
            assert not calls, "an untrained policy called a tool"
            messages.append({"role": "assistant", "content": content})
        else:
            answer = await client.chat.completions.create(model="policy", messages=messages, max_tokens=limit)
            messages.append(answer.choices[0].message)
        messages.append({"role": "user", "content": f"and then? {turn} é"})
    return session


async def test_exported_logprobs_equal_a_transformers_forward_across_a_weight_sync(engine_pool, reference, front):
    publisher = WeightPublisher(engine_pool)
    await publisher.publish(30, reference.buckets("A"), mode="keep")
    work = [asyncio.create_task(talk(front, seed)) for seed in range(SESSIONS)]
    while sum(s.turns for s in front.store.sessions()) < SESSIONS:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    await publisher.publish(31, reference.buckets("B"), mode="keep")
    sessions = await asyncio.gather(*work)
    worst, by_version = 0.0, {30: 0, 31: 0}
    for session in sessions:
        (row,) = front.store.export(session.session_id)
        assert session.branches == 0 and len(row.turns) == 4
        expected = {v: [0.0, *reference.logprobs(name, row.token_ids.tolist())] for v, name in ((30, "A"), (31, "B"))}
        for at in row.loss_mask.nonzero()[0]:
            version = int(row.versions[at])
            by_version[version] += 1
            worst = max(worst, abs(expected[version][at] - float(row.logprobs[at])))
    assert worst < TOLERANCE, worst
    assert min(by_version.values()) > 50, by_version


async def forced_call(client: openai.AsyncOpenAI, tool_choice: Any, stream: bool) -> tuple[str, str] | None:
    """Name and arguments of a forced call; None when an untrained policy spent its tokens on white space."""
    answer: Any = await client.chat.completions.create(
        model="policy", messages=[{"role": "user", "content": "x"}], tools=TOOLS, tool_choice=tool_choice,
        parallel_tool_calls=False, stream=stream,
    )  # fmt: skip
    if not stream:
        choice = answer.choices[0]
        if choice.finish_reason == "length":
            return None
        (call,) = choice.message.tool_calls
        return call.function.name, call.function.arguments
    name = arguments = ""
    reason = None
    async for chunk in answer:
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or ():
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    return None if reason == "length" else (name, arguments)


async def test_forced_calls_are_valid_calls(front):
    client = front.client(front.settings.client_key)
    named: Any = {"type": "function", "function": {"name": "check_line"}}
    for tool_choice in ("required", named):
        for stream in (False, True):
            calls = await asyncio.gather(*(forced_call(client, tool_choice, stream) for _ in range(12)))
            finished = [call for call in calls if call is not None]
            assert finished, "no call was completed"
            for name, arguments in finished:
                assert name == "check_line"
                parsed = json.loads(arguments)
                assert parsed["line"] in ("L1", "L2")
                assert isinstance(parsed["deep"], bool)


async def test_forced_calls_with_definitions_are_enforced_in_any_format(engine_pool, reference):
    """Forced calls are a JSON list whatever the parser: real vLLM accepts the schemas and samples what they allow."""
    async with Front(engine_pool, reference) as front:
        front.format.tool_parser = PythonicParser()
        client = front.client(front.settings.client_key)
        # An untrained policy never ends a string or a list by itself: closing tokens are made likely, white space not.
        bias = {front.format.encode(mark)[0]: 30 for mark in ('"', "}", "]")}
        bias |= {front.format.encode(space)[0]: -100 for space in (" ", "\n", "\t")}
        ask: Any = {"model": "policy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200}
        ask |= {"logit_bias": {str(token): weight for token, weight in bias.items()}}
        ended = 0
        for name, (schema, _, _) in CASES.items():
            function: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
            answer = await client.chat.completions.create(**ask, tools=[function], tool_choice="required", seed=1)
            choice = answer.choices[0]
            if choice.finish_reason == "length":
                continue  # an untrained policy spends its tokens on white space or a text without end
            ended += 1
            assert choice.message.tool_calls, name
            for call in choice.message.tool_calls:
                assert call.type == "function"
                jsonschema.validate(json.loads(call.function.arguments), schema)
        assert ended, "no call was completed"


async def test_stop_strings_choices_and_logprobs(front):
    client = front.client(front.settings.client_key)
    ask: Any = {
        "model": "policy",
        "messages": [{"role": "user", "content": "say it"}],
        "temperature": 0.0,
        "max_tokens": 64,
    }
    whole = (await client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)).choices[0]
    text = whole.message.content or ""
    assert whole.logprobs and all(len(entry.top_logprobs) == 3 for entry in whole.logprobs.content or ())
    # ASCII only: an untrained policy also samples parts of characters, which decode differently when cut.
    found = re.search(r"[ -~]{3}", text[len(text) // 3 :])
    assert found, text
    word = found.group()
    cut = (await client.chat.completions.create(**ask, stop=[word])).choices[0]
    assert cut.message.content == text.partition(word)[0], (text, word)
    assert cut.finish_reason == "stop"
    several = await client.chat.completions.create(**{**ask, "temperature": 1.0}, n=3, seed=5)
    assert len({choice.message.content for choice in several.choices}) > 1


async def test_leaving_aborts_the_generation_in_the_engine(front, engine_pool):
    client = front.client(front.settings.client_key)
    extra = {"ignore_eos": True}
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.05).chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "x"}], extra_body=extra
        )
    async with asyncio.timeout(10):
        while any(member.inflight for member in engine_pool.members):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_the_proxy_as_a_program(engine_pool, reference):
    """``python -m tau2_lightning.rollout.proxy`` with a running engine; SIGTERM ends it cleanly."""
    member = engine_pool.members[0]
    command = [
        sys.executable, "-m", "tau2_lightning.rollout.proxy", f"actor.path={reference.folders['A']}",
        f"rollout.engine_urls=[{member.client.url}]", f"rollout.engine_api_key={engine_pool.settings.api_key}",
    ]  # fmt: skip
    env = {**os.environ, "TAU2_LIGHTNING_CLIENT_KEY": "the-client", "TAU2_LIGHTNING_ADMIN_KEY": "the-admin"}
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=env)
    assert process.stdout
    try:
        async with asyncio.timeout(90):
            lines: list[str] = []
            while not lines or lines[-1] != "ready":
                lines.append((await process.stdout.readline()).decode().strip())
                assert process.returncode is None and len(lines) < 100, lines
        base_url = next(line for line in lines if line.startswith("OPENAI_BASE_URL=")).split("=", 1)[1]
        client = openai.AsyncOpenAI(base_url=base_url, api_key="the-client", max_retries=0)
        answer = await client.chat.completions.create(
            model="policy", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
        assert answer.usage and 1 <= answer.usage.completion_tokens <= 5
        async with httpx.AsyncClient(base_url=base_url.removesuffix("/v1")) as http:
            assert (await http.get("/health")).json() == {"status": "ok"}
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.wait()
    assert process.returncode == 0
