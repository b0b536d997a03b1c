"""Speaks to one vLLM server: token ids in, token ids out, and the routes that steer it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from tau2_lightning.errors import InfrastructureFault

from .generation import NEUTRAL, Generation, SamplingParams

GENERATE = "/inference/v1/generate"
SEEDS_HEADER = "X-Tau2-Lightning-Seeds"
# What vLLM calls versions before anything was published.
UNVERSIONED = "default"
# An idle connection is given up well before vLLM (after 5 s, when nobody tells it otherwise) closes it: a request sent
# on one that the server is just closing looks like a dead engine.
IDLE_SECONDS = 3.0


class EngineRejected(ValueError):
    """The engine refuses the request, and would refuse it again: too long, out of range, unknown parameter."""


class EngineClient:
    """Asynchronous client of the server at ``url``. It neither retries nor keeps time: EnginePool does.

    ``forward_seed`` tells whether per-request seeds are passed on: a CPU server without our extension dies of one with
    a long prompt. Raises InfrastructureFault("engine", cause) with cause ``connection``, ``unauthorized``, ``http 5xx``
    or ``bad answer``, and EngineRejected.
    """

    def __init__(self, url: str, *, api_key: str = "", name: str = "engine", forward_seed: bool = False) -> None:
        self.url, self.name = url.rstrip("/"), name
        self.model: str | None = None  # a LoRA adapter's name while one is served
        self.adapter: str | None = None  # the adapter the server has loaded, served or not
        self.forward_seed = forward_seed
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def generate(self, token_ids: Sequence[int], sampling: SamplingParams) -> Generation:
        """Sample one continuation. Cancelling closes the connection, on which vLLM aborts the request."""
        return parse_generation(await self.post(GENERATE, self.request_body(token_ids, sampling)), sampling)

    async def stream(self, token_ids: Sequence[int], sampling: SamplingParams) -> AsyncIterator[Generation]:
        """Sample one continuation in chunks, as vLLM's server-sent events bring them.

        vLLM names the weight versions in the last event only: until then chunks carry -1, and the last chunk's
        ``stream_versions`` holds those of every token of the stream.
        """
        body = self.request_body(token_ids, sampling, stream=True)
        finished = False
        async with self._request("POST", GENERATE, body) as response:
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = _decoded(line[6:], self.name)
                if "error" in event:
                    raise InfrastructureFault("engine", "stream error", f"{self.name}: {event['error']}")
                for choice in event.get("choices", ()):
                    chunk = parse_chunk(choice, sampling)
                    finished = finished or bool(chunk.finish_reason)
                    yield chunk
        if not finished:
            raise InfrastructureFault("engine", "bad answer", f"{self.name}: the stream ended before its last chunk")

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities (nats, temperature 1) of tokens 1..T-1 given those before."""
        if len(token_ids) < 2:
            return []
        sampling = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "detokenize": False}
        body: dict[str, Any] = {"token_ids": list(token_ids), "sampling_params": sampling}
        if self.model:
            body["model"] = self.model
        answer = await self.post(GENERATE, orjson.dumps(body))
        entries = answer["prompt_logprobs"]
        if entries is None or len(entries) != len(token_ids):
            raise InfrastructureFault("engine", "bad answer", f"{self.name}: no log-probs for the prompt")
        return [float(entry[str(token)]["logprob"]) for token, entry in zip(token_ids[1:], entries[1:], strict=True)]

    async def healthy(self, seconds: float = 5.0) -> bool:
        """Whether ``/health`` answers 200 within ``seconds``."""
        try:
            async with asyncio.timeout(seconds), self._request("GET", "/health"):
                return True
        except (InfrastructureFault, TimeoutError):
            return False

    async def responds(self, seconds: float) -> bool:
        """Whether the engine core answers within ``seconds``, however long the queue of its requests is.

        It does between two steps; ``/health`` is answered by the API server, also for a core that hangs. Raises
        EngineRejected for a vLLM that has no such question: nobody would notice a hang then.
        """
        try:
            async with asyncio.timeout(seconds), self._request("GET", "/is_paused"):
                return True
        except (InfrastructureFault, TimeoutError):
            return False

    async def control(self, path: str, body: Mapping[str, Any] | None = None, **params: str) -> dict[str, Any]:
        """POST one of the steering routes (pause, weights, cache) and return its JSON answer."""
        return await self.post(path, orjson.dumps(body) if body is not None else b"", params)

    async def served_length(self) -> int:
        """``max_model_len`` of the served model. A server with our extension says here that it stands seeds."""
        async with self._request("GET", "/v1/models") as response:
            answer = _decoded(await response.read(), self.name)
            self.forward_seed = self.forward_seed or SEEDS_HEADER in response.headers
        return int(answer["data"][0]["max_model_len"])

    async def world_size(self) -> int:
        """Number of workers (devices) behind this server."""
        async with self._request("GET", "/get_world_size") as response:
            return int(_decoded(await response.read(), self.name)["world_size"])

    async def post(self, path: str, body: bytes, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """POST a JSON body; the JSON answer, or {} when the answer is something else."""
        async with self._request("POST", path, body, params) as response:
            answer = await response.read()
            return _decoded(answer, self.name) if response.content_type == "application/json" else {}

    async def close(self) -> None:
        """Close this loop's connections, and forget those of loops that have ended."""
        for loop in [loop for loop in self._sessions if loop.is_closed() or loop is asyncio.get_running_loop()]:
            session = self._sessions.pop(loop)
            if not loop.is_closed():
                await session.close()

    def request_body(self, token_ids: Sequence[int], sampling: SamplingParams, *, stream: bool = False) -> bytes:
        """The JSON body of a generate request."""
        params: dict[str, Any] = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
        params["logprobs"] = sampling.logprobs
        for name, neutral in NEUTRAL.items():
            if (value := getattr(sampling, name)) != neutral:
                params[name] = value
        if sampling.ignore_eos:
            params["ignore_eos"] = True
        if sampling.stop:
            params["stop"] = sampling.stop
        else:
            params["detokenize"] = False  # text is the proxy's business; this spares the server a third of its work
        if sampling.stop_token_ids:
            params["stop_token_ids"] = sampling.stop_token_ids
        if sampling.logit_bias:
            params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.structured is not None:
            params["structured_outputs"] = dict(sampling.structured)
        if sampling.seed is not None and self.forward_seed:
            params["seed"] = sampling.seed
        body: dict[str, Any] = {"token_ids": token_ids, "sampling_params": params}
        if self.model:
            body["model"] = self.model
        if stream:
            body["stream"] = True
        try:
            return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError:
            body["token_ids"] = [int(token) for token in token_ids]
            return orjson.dumps(body)

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes = b"", params: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session().request(
                method, self.url + path, data=body or None, params=params, headers=self._headers
            ) as response:
                if response.status != 200:
                    raise refusal(self.name, response.status, await response.text())
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise InfrastructureFault("engine", "connection", f"{self.name} at {self.url}: {error!r}") from error

    def _session(self) -> aiohttp.ClientSession:
        # Connections belong to the event loop that opened them; a trainer may bring more than one loop.
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20
            )
            self._sessions[loop] = session
        return session


def refusal(name: str, status: int, text: str) -> Exception:
    """The exception that an HTTP answer other than 200 stands for."""
    message = f"{name} answered {status}: {text[:500]}"
    if status in (401, 403):
        return InfrastructureFault("engine", "unauthorized", message)
    if 400 <= status < 500 and status not in (408, 429):
        return EngineRejected(message)
    return InfrastructureFault("engine", f"http {status}", message)


def parse_generation(answer: Mapping[str, Any], sampling: SamplingParams) -> Generation:
    """A non-streamed answer of ``/inference/v1/generate``. Raises InfrastructureFault when parts are missing."""
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        chunk = parse_chunk(choice, sampling)
        versions = spread_versions(choice.get("weight_versions"), len(chunk.token_ids))
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Generation(
            chunk.token_ids,
            chunk.logprobs,
            versions,
            chunk.finish_reason,
            chunk.top_logprobs,
            usage["prompt_tokens"],
            cached,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise InfrastructureFault("engine", "bad answer", f"{error!r} in {str(answer)[:300]}") from error


def parse_chunk(choice: Mapping[str, Any], sampling: SamplingParams) -> Generation:
    """One choice of an answer or event; versions are -1 except in ``stream_versions`` of the last chunk."""
    token_ids = tuple(choice["token_ids"] or ())
    content = (choice.get("logprobs") or {}).get("content") or ()
    logprobs = tuple(entry["logprob"] for entry in content)
    if len(logprobs) != len(token_ids):
        raise InfrastructureFault("engine", "bad answer", f"{len(token_ids)} tokens with {len(logprobs)} log-probs")
    reason = choice.get("finish_reason") or ""
    if reason == "error":
        raise InfrastructureFault("engine", "generation error", str(choice)[:300])
    top: tuple[dict[int, float], ...] = ()
    if sampling.logprobs:
        top = tuple({alt["token_id"]: alt["logprob"] for alt in entry["top_logprobs"]} for entry in content)
    spans = choice.get("weight_versions")
    total = spans[-1]["end"] if spans else 0
    stream_versions = spread_versions(spans, total)
    return Generation(token_ids, logprobs, (-1,) * len(token_ids), reason, top, stream_versions=stream_versions)


def spread_versions(spans: Sequence[Mapping[str, Any]] | None, count: int) -> tuple[int, ...]:
    """Per-token weight versions from vLLM's spans ``[start, end)``; -1 where none was reported."""
    versions = [-1] * count
    for span in spans or ():
        label = -1 if span["version"] == UNVERSIONED else int(span["version"])
        start, end = span["start"], min(span["end"], count)
        versions[start:end] = [label] * (end - start)
    return tuple(versions)


def _decoded(body: bytes, name: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InfrastructureFault("engine", "bad answer", f"{name}: {error} in {body[:200]!r}") from error
    return answer
