"""ASGI middleware for vLLM's API server: a short path through ``/inference/v1/generate``.

For short generations, the server's routing, metrics, validation and rendering of a request cost more than its tokens.
This middleware gives a plain request (token ids, sampling numbers, no text) directly to the engine, and answers with
the same JSON. When the client's deadline has passed, it ends the request and returns the tokens sampled so far. All
other requests, and those that the engine refuses, take vLLM's own route.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.serial_utils import numpy2base64

from .names import DEADLINE_HEADER, GENERATE, SEEDS_HEADER

MODELS = "/v1/models"
PLAIN_PARAMETERS = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos", "stop_token_ids", "logprobs"}
    | {"detokenize", "routed_experts_prompt_start"}
)
LOWEST_LOGPROB = -9999.0


class _ClientGoneError(Exception):
    """The client has left before the answer."""


class FastGenerate:
    """Answers plain generate requests with vLLM's own engine client, which the application's state holds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == MODELS:
            send = _with_header(send)
        if scope["type"] != "http" or scope["path"] != GENERATE or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body, complete = await _read(receive)
        if complete and (plain := plain_request(body)):
            try:
                answer = await self._generate(scope["app"].state.engine_client, *plain, receive, _seconds(scope))
            except (VLLMClientError, ValueError):
                answer = None  # vLLM's own route answers with its error
            except _ClientGoneError:
                return
            if answer is not None:
                await Response(orjson.dumps(answer), media_type="application/json")(scope, receive, send)
                return
        await self.app(scope, _replayed(body, complete, receive), send)

    async def _generate(
        self, engine: Any, token_ids: list[int], params: dict[str, Any], receive: Receive, seconds: float | None
    ) -> dict[str, Any] | None:
        sampling = SamplingParams(**params, output_kind=RequestOutputKind.FINAL_ONLY)
        sampling.skip_clone = True  # made for this request alone
        if len(token_ids) + (sampling.max_tokens or 0) > engine.model_config.max_model_len:
            return None
        name = f"plain-{next(self._numbers)}"
        work = asyncio.ensure_future(_last(engine, token_ids, sampling, name))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            cut = not work.done() and not gone.done()
            if cut:
                await engine.abort(name)  # vLLM then yields a last output, with the tokens sampled so far
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise _ClientGoneError
            return answer_of(work.result(), cut=cut)
        finally:
            work.cancel()  # if it still runs: vLLM then aborts the request
            gone.cancel()


def plain_request(body: bytes) -> tuple[list[int], dict[str, Any]] | None:
    """Token ids and sampling parameters of a plain request, None for any other."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(request, dict) or request.keys() != {"token_ids", "sampling_params"}:
        return None
    token_ids, params = request["token_ids"], request["sampling_params"]
    if not isinstance(params, dict) or not params.keys() <= PLAIN_PARAMETERS:
        return None
    if params.get("detokenize", True) or params.get("logprobs") != 0 or "max_tokens" not in params:
        return None
    if not isinstance(token_ids, list) or not token_ids or any(type(token) is not int for token in token_ids):
        return None
    return token_ids, params


def answer_of(result: RequestOutput, *, cut: bool = False) -> dict[str, Any] | None:
    """The JSON of vLLM's GenerateTokensResponse, for one choice; None when generation failed.

    ``cut``: the deadline ended the request; the choice then has ``cut_after_idle_s``, the age of its last token.
    """
    output: CompletionOutput = result.outputs[0]
    token_ids = list(output.token_ids)
    if output.finish_reason == "error" or (output.logprobs is None and token_ids):
        return None
    content = []
    for token, alternatives in zip(token_ids, output.logprobs or (), strict=True):
        logprob = alternatives[token]
        # As vLLM does, since JSON has no infinities.
        value = logprob.logprob if logprob.logprob > LOWEST_LOGPROB else LOWEST_LOGPROB
        content.append({"token_id": token, "logprob": value, "rank": logprob.rank, "top_logprobs": []})
    prompt_tokens = len(result.prompt_token_ids or ())
    choice: dict[str, Any] = {
        "index": 0,
        "token_ids": token_ids,
        "logprobs": {"content": content},
        "finish_reason": output.finish_reason or "stop",
        "stop_reason": output.stop_reason,
        "weight_versions": output.weight_versions,
    }
    if cut and output.finish_reason == "abort":
        newest = getattr(result.metrics, "last_token_ts", 0.0)  # of the monotonic clock, which all processes share
        choice["cut_after_idle_s"] = max(0.0, time.monotonic() - newest) if newest else 0.0
    if (queued := _queued(getattr(result, "metrics", None))) is not None:
        choice["queued_s"] = queued
    if output.routed_experts is not None:
        choice["routed_experts"] = numpy2base64(output.routed_experts)
    usage: Mapping[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(token_ids),
        "total_tokens": prompt_tokens + len(token_ids),
        "prompt_tokens_details": {"cached_tokens": result.num_cached_tokens},
    }
    return {"request_id": result.request_id, "output_mode": "tokens", "choices": [choice], "usage": usage}


def _queued(times: Any) -> float | None:
    """Seconds that the request waited before its prompt was computed; None where vLLM keeps no statistics."""
    queued, scheduled = getattr(times, "queued_ts", 0.0), getattr(times, "scheduled_ts", 0.0)
    return max(0.0, scheduled - queued) if queued and scheduled else None


async def _last(engine: Any, token_ids: list[int], sampling: SamplingParams, name: str) -> RequestOutput:
    result = None
    async for result in engine.generate(tokens_input(token_ids), sampling, name):  # noqa: B007  # FINAL_ONLY: once
        pass
    assert result is not None
    return result


def _seconds(scope: Scope) -> float | None:
    """The client's deadline, in seconds from now; None without one."""
    given = Headers(scope=scope).get(DEADLINE_HEADER)
    return None if given is None else float(given)


async def _read(receive: Receive) -> tuple[bytes, bool]:
    """The request's body, and whether all of it came before the client left."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts), False
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts), True


def _with_header(send: Send) -> Send:
    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (SEEDS_HEADER.encode(), b"1")]}
        await send(message)

    return send_with_header


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replayed(body: bytes, complete: bool, receive: Receive) -> Receive:
    """A ``receive`` for vLLM's route that returns the body read here first."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    if not complete:
        first = [{"type": "http.disconnect"}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
