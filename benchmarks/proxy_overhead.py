"""Measures what the proxy costs: calls against litellm's stock path, and generated tokens against vLLM alone.

Part one measures calls per CPU second, in one run and one process. Both sides play the same telecom conversation:
tau2's policy and ticket, 44 tools, one tool call a turn, up to ``--turns`` turns. Every 8 dialogues get the same tool
results, as the samples of one task do. The model behind both answers immediately.

- ``proxy``: our policy client over HTTP -> our proxy, which records a token-exact session -> an engine that answers
  at once. The figure includes rendering, tokenising, parsing, sessions and HTTP.
- ``inside``: the client's direct form, which calls the proxy's chat service in the same process; the built-in episodes
  use it.
- ``openai``: the same with the openai package as the client, as other people's agents use it.
- ``litellm``: ``litellm.completion`` with the tools in every request, as tau2 calls it, to an HTTP server that returns
  a canned answer without looking at the request. No server can do less work.

Figures are CPU time of this process, so other load changes the ratio little; rounds alternate. Part two is
``proxy_engine.py``: a real engine, 32 episodes at a time.

    python benchmarks/proxy_overhead.py [--rounds 5] [--turns 16] [--concurrent 32] [--without-engine]

The last line is JSON: ``ratios`` (calls of the proxy over litellm's with each client, and those of part two), their
``aims``, and ``figures`` (calls per CPU second; the proxy's added p50 in ms).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import aiohttp
import httpx
import openai
import orjson
import proxy_engine
import uvloop

from tau2_lightning.environment import Dialogue, EnvironmentSettings, load_tasks
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.policy.tiny import train_tokenizer
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.generation import Generation, SamplingParams
from tau2_lightning.rollout.episode.client import HttpPolicyClient
from tau2_lightning.rollout.episode.workflow import Access
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore

SAMPLES = 8  # dialogues with the same tool results: the samples of one task
AIMS = {"calls_over_litellm": 8.0, **proxy_engine.AIMS}
CALL = '<tool_call>\n{"name": "get_customer_by_phone", "arguments": {"phone_number": "555-123-2002"}}\n</tool_call>'
RESULT = json.dumps({"customer_id": "C1001", "name": "John Smith", "lines": ["L1001", "L1002"], "status": "Active"})


class InstantEngine:
    """An engine that answers every prompt at once with the same tool call."""

    max_model_len = 1_000_000

    def __init__(self, token_ids: Sequence[int]) -> None:
        count = len(token_ids)
        self._answer = Generation(tuple(token_ids), (-0.1,) * count, (0,) * count, "stop")

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        return self._answer

    async def stream(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> AsyncIterator[Generation]:
        yield self._answer

    async def score(self, token_ids: Sequence[int], *, deadline: float) -> list[float]:
        return [0.0] * (len(token_ids) - 1)


class Case:
    """The opening messages and tools of one telecom task, and a tokenizer with Qwen2.5's template."""

    def __init__(self) -> None:
        settings = EnvironmentSettings("telecom", solo_mode=True)
        dialogue = Dialogue(load_tasks("telecom", "test")[0], settings)
        asyncio.run(dialogue.start())
        self.opening: list[dict[str, Any]] = list(dialogue.messages)
        self.tools = list(blueprint("telecom", True).tool_schemas(False))
        text = json.dumps(self.opening) + json.dumps(self.tools)
        self.tokenizer = train_tokenizer([text, CALL, RESULT] * 4, 4096)
        import trl

        self.tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen2_5.jinja").read_text()
        self.chat_format = ChatFormat(self.tokenizer)
        self.answer = [*self.chat_format.encode(CALL), self.tokenizer.eos_token_id]


class Canned(BaseHTTPRequestHandler):
    """A server that does as little as possible: it reads the request and sends a fixed answer."""

    protocol_version = "HTTP/1.1"
    body = orjson.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "policy",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "tool_calls",
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "call_1",
                                "type": "function",
                                "function": {
                                    "name": "get_customer_by_phone",
                                    "arguments": '{"phone_number": "555-123-2002"}',
                                },
                            }
                        ],
                    },
                }
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    )

    wbufsize = -1  # one packet for each answer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        return None


def tool_message(reply: Any, turn: int, task: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": f"{RESULT} {task}.{turn}"}


def litellm_round(case: Case, base_url: str, turns: int) -> int:
    """Play one dialogue as tau2 does: messages are litellm's own objects, tools go with every call."""
    import litellm

    messages: list[Any] = list(case.opening)
    for turn in range(turns):
        answer = litellm.completion(
            model="openai/policy", api_base=base_url, api_key="x", messages=messages, tools=case.tools,
            tool_choice="required", temperature=1.0, num_retries=0,
        )  # fmt: skip
        reply = answer.choices[0].message.model_dump(exclude_none=True)
        messages += [reply, tool_message(reply, turn)]
    return turns


class Client(Protocol):
    """A client that a dialogue can use."""

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]: ...


class OpenAIClient:
    """Sends requests with the openai package and reads the answers as our client does."""

    def __init__(self, access: Access, api_key: str) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=access.base_url, api_key=api_key, http_client=access.http_client, max_retries=0
        )

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._client.post("/chat/completions", cast_to=httpx.Response, body=body)
        message: dict[str, Any] = orjson.loads(answer.content)["choices"][0]["message"]
        return message


class ProxySide:
    """Proxy and clients in one event loop, as in training."""

    def __init__(self, case: Case) -> None:
        self.case, self.store = case, SessionStore()
        self.service = ChatService(self.store, case.chat_format, InstantEngine(case.answer), ProxySettings())
        self.server = ProxyServer(create_app(self.service))

    async def dialogue(
        self, make_client: Callable[[str], Client], turns: int, task: int = 0, waits: list[float] | None = None
    ) -> int:
        session = self.store.start(tools=self.case.tools)
        client = make_client(session.api_key)
        messages = list(self.case.opening)
        for turn in range(turns):
            began = time.perf_counter()
            body = {"model": "policy", "messages": messages, "temperature": 1.0}
            reply = await client.complete(body)
            if waits is not None:
                waits.append(time.perf_counter() - began)
            messages += [reply, tool_message(reply, turn, task)]
        (row,) = self.store.export(session.session_id)
        assert (len(row.turns), session.branches) == (turns, 0)
        self.store.end(session.session_id)
        return turns


def timed(work: Callable[[], int]) -> float:
    """Return calls per CPU second."""
    gc.collect()
    began = time.process_time()
    calls = work()
    return calls / (time.process_time() - began)


def overhead(rounds: int, turns: int, concurrent: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return ratios and figures of part one."""
    case = Case()
    canned = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    threading.Thread(target=canned.serve_forever, daemon=True).start()
    canned_url = f"http://127.0.0.1:{canned.server_port}/v1"
    loop = uvloop.new_event_loop()  # as a run does
    side = ProxySide(case)
    loop.run_until_complete(side.server.start())

    async def open_access(over_http: bool) -> Access:
        access = episode_access(side.service, side.server.base_url, over_http=over_http, timeout=60)
        return await stack.enter_async_context(access)

    stack = AsyncExitStack()
    http, inside = (loop.run_until_complete(open_access(over_http)) for over_http in (True, False))
    numbers = itertools.count()

    def proxy_round(make_client: Callable[[str], Client]) -> int:
        async def all_at_once() -> int:
            tasks = [next(numbers) // SAMPLES for _ in range(concurrent)]
            work = (side.dialogue(make_client, turns, task) for task in tasks)
            return sum(await asyncio.gather(*work))

        return loop.run_until_complete(all_at_once())

    litellm_round(case, canned_url, 2)
    loop.run_until_complete(side.dialogue(http.client, 2))
    rates: dict[str, list[float]] = {"litellm": [], "proxy": [], "inside": [], "openai": []}
    for at in range(rounds):
        rates["litellm"].append(timed(lambda: litellm_round(case, canned_url, turns)))
        rates["proxy"].append(timed(lambda: proxy_round(http.client)))
        rates["inside"].append(timed(lambda: proxy_round(inside.client)))
        rates["openai"].append(timed(lambda: proxy_round(partial(OpenAIClient, http))))
        line = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
        print(f"round {at + 1}: {line} calls per CPU second", flush=True)

    waits: list[float] = []
    for task in range(6):
        loop.run_until_complete(side.dialogue(http.client, turns, -task, waits))
    direct: list[float] = []

    async def straight() -> None:
        async with aiohttp.ClientSession() as connections:
            client = HttpPolicyClient(canned_url, "x", connections, timeout=60)
            for _ in range(100):
                began = time.perf_counter()
                await client.complete({"messages": case.opening})
                direct.append(time.perf_counter() - began)

    loop.run_until_complete(straight())
    loop.run_until_complete(stack.aclose())
    loop.run_until_complete(side.server.stop())
    canned.shutdown()
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "calls_over_litellm": round(middle["proxy"] / middle["litellm"], 2),
        "calls_over_litellm_inside": round(middle["inside"] / middle["litellm"], 2),
        "calls_over_litellm_openai_client": round(middle["openai"] / middle["litellm"], 2),
    }
    figures = {f"{name}_calls_per_cpu_s": round(value, 1) for name, value in middle.items()}
    figures["added_p50_ms"] = round(1e3 * (statistics.median(waits) - statistics.median(direct)), 2)
    figures["prompt_tokens"] = len(case.chat_format.render(case.opening, case.tools))
    return ratios, figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--concurrent", type=int, default=32)
    parser.add_argument("--without-engine", action="store_true")
    arguments = parser.parse_args()
    ratios, figures = overhead(arguments.rounds, arguments.turns, arguments.concurrent)
    if not arguments.without_engine:
        ratios |= uvloop.run(proxy_engine.measure())
    aims = {name: aim for name, aim in AIMS.items() if name in ratios}
    print(json.dumps({"ratios": ratios, "aims": aims, "figures": figures}))


if __name__ == "__main__":
    main()
