"""HTTP client of one vLLM server: token ids in, token ids out, and the routes that control the server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from tau2_lightning.errors import InfrastructureFault

from .generation import EngineRejected, Generation, SamplingParams, Scores
from .in_vllm.names import CPU_SECONDS, DEADLINE_HEADER, GENERATE, SEEDS_HEADER
from .wire import decoded, parse_chunk, parse_generation, parse_scores, refusal, request_body, score_body

JSON = "application/json"
# The client closes an idle connection well before vLLM does (after 5 s by default): a request on a connection that the
# server is just closing looks like a dead engine.
IDLE_SECONDS = 3.0
# Longer bodies are given to aiohttp as a stream: it would send one long piece without giving the loop to other tasks.
LARGE_BYTES = 1 << 20


class EngineClient:
    """Asynchronous client of the server at ``url``. It has no retries and no deadlines; EnginePool adds them.

    ``forward_seed`` passes the seeds of requests on: a CPU server without our extension crashes on a seed with a long
    prompt. Raises InfrastructureFault("engine", cause) with cause ``connection``, ``unauthorized``, ``http 5xx`` or
    ``bad answer``, and EngineRejected.
    """

    def __init__(self, url: str, *, api_key: str = "", name: str = "engine", forward_seed: bool = False) -> None:
        self.url, self.name = url.rstrip("/"), name
        self.model: str | None = None  # a LoRA adapter's name while one is served
        self.adapter: str | None = None  # the adapter the server has loaded, served or not
        self.forward_seed = forward_seed
        self._headers = {"Content-Type": JSON} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, within: float | None = None
    ) -> Generation:
        """Sample one continuation. Cancelling closes the connection, and vLLM then aborts the request.

        If the server can do so (`ends_in_time`), it ends the request after ``within`` seconds and returns the tokens
        sampled so far.
        """
        body = request_body(token_ids, sampling, model=self.model, seeds=self.forward_seed)
        headers = {} if within is None else {DEADLINE_HEADER: f"{within:.3f}"}
        return parse_generation(await self.post(GENERATE, body, headers=headers), sampling)

    def ends_in_time(self, sampling: SamplingParams) -> bool:
        """Whether the server ends such a request at a deadline. Only our extension can, and only for plain requests."""
        plain = not (sampling.stop or sampling.structured or sampling.logit_bias or sampling.logprobs)
        return self.forward_seed and plain and not self.model and not sampling.penalised

    async def stream(self, token_ids: Sequence[int], sampling: SamplingParams) -> AsyncIterator[Generation]:
        """Sample one continuation in chunks, one for each of vLLM's server-sent events.

        vLLM reports weight versions in the last event only: earlier chunks carry -1, and ``stream_versions`` of the
        last chunk holds the versions of every token of the stream.
        """
        body = request_body(token_ids, sampling, model=self.model, seeds=self.forward_seed, stream=True)
        finished = False
        async with self._request("POST", GENERATE, body) as response:
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = decoded(line[6:], self.name)
                if "error" in event:
                    raise InfrastructureFault("engine", "stream error", f"{self.name}: {event['error']}")
                for choice in event.get("choices", ()):
                    chunk = parse_chunk(choice, sampling)
                    finished = finished or bool(chunk.finish_reason)
                    yield chunk
        if not finished:
            raise InfrastructureFault("engine", "bad answer", f"{self.name}: the stream ended before its last chunk")

    async def score(self, token_ids: Sequence[int]) -> Scores:
        """Log-probabilities (nats, temperature 1) of tokens 1..T-1 given those before, and the version they are of."""
        if len(token_ids) < 2:
            return Scores([], None)
        return parse_scores(await self.post(GENERATE, score_body(token_ids, self.model)), token_ids, self.name)

    async def healthy(self, seconds: float = 5.0) -> bool:
        """Whether ``/health`` answers 200 within ``seconds``."""
        return await self._answers("/health", seconds)

    async def responds(self, seconds: float) -> bool:
        """Whether the engine core answers within ``seconds``, however long the queue of its requests is.

        The core answers between two steps; ``/health`` is answered by the API server, also when the core hangs. True
        for a vLLM without this route (``VLLM_SERVER_DEV_MODE`` is not set), where a hang cannot be noticed.
        """
        try:
            return await self._answers("/is_paused", seconds)
        except EngineRejected:
            return True

    async def cpu_seconds(self, seconds: float) -> float | None:
        """Processor time (seconds) that the engine core and its workers have used since they started.

        None when the server does not answer within ``seconds``, or was started without our extension.
        """
        try:
            async with asyncio.timeout(seconds), self._request("GET", CPU_SECONDS) as response:
                return float(decoded(await response.read(), self.name)["cpu_seconds"])
        except (InfrastructureFault, EngineRejected, TimeoutError, KeyError):
            return None

    async def control(self, path: str, body: Mapping[str, Any] | None = None, **params: str) -> dict[str, Any]:
        """POST to one of the control routes (pause, weights, cache) and return its JSON answer."""
        return await self.post(path, orjson.dumps(body) if body is not None else b"", params)

    async def served_length(self) -> int:
        """``max_model_len`` of the served model. Also notes whether the server has our extension and accepts seeds."""
        async with self._request("GET", "/v1/models") as response:
            answer = decoded(await response.read(), self.name)
            self.forward_seed = self.forward_seed or SEEDS_HEADER in response.headers
        return int(answer["data"][0]["max_model_len"])

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON answer of a GET request."""
        async with self._request("GET", path) as response:
            return decoded(await response.read(), self.name)

    async def world_size(self) -> int:
        """Number of workers (devices) behind this server."""
        return int((await self.get("/get_world_size"))["world_size"])

    async def post(
        self, path: str, body: bytes, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """POST a body, JSON unless ``headers`` say otherwise; returns the JSON answer, or {} if the answer is none."""
        async with self._request("POST", path, body, params, headers) as response:
            answer = await response.read()
            return decoded(answer, self.name) if response.content_type == "application/json" else {}

    async def metrics(self, seconds: float) -> str:
        """The server's Prometheus metrics, as text. Raises TimeoutError after ``seconds``."""
        async with asyncio.timeout(seconds), self._request("GET", "/metrics") as response:
            return await response.text()

    async def close(self) -> None:
        """Close the connections of the running loop, and forget those of loops that have ended."""
        for loop in [loop for loop in self._sessions if loop.is_closed() or loop is asyncio.get_running_loop()]:
            session = self._sessions.pop(loop)
            if not loop.is_closed():
                await session.close()

    async def _answers(self, path: str, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds), self._request("GET", path):
                return True
        except (InfrastructureFault, TimeoutError):
            return False

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = {**self._headers, **headers} if headers else self._headers
        data = io.BytesIO(body) if len(body) > LARGE_BYTES else body or None
        try:
            async with self._session().request(
                method, self.url + path, data=data, params=params, headers=sent
            ) as response:
                if response.status != 200:
                    raise refusal(self.name, response.status, await response.text())
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise InfrastructureFault("engine", "connection", f"{self.name} at {self.url}: {error!r}") from error

    def _session(self) -> aiohttp.ClientSession:
        # Connections belong to the event loop that opened them; a trainer may use more than one loop.
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20
            )
            self._sessions[loop] = session
        return session
