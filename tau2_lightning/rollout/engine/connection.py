"""HTTP connections to one engine server. Every failure is raised as a fault of the engine."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

from tau2_lightning.errors import InfrastructureFault

from .generation import Generation
from .wire import decoded, refusal

JSON = "application/json"
# The client closes an idle connection well before vLLM and SGLang do (after 5 s by default): a request on a connection
# that the server is just closing looks like a dead engine.
IDLE_SECONDS = 3.0
# A server whose code raises answers 500 and then closes the connection (uvicorn). On a connection that is used again,
# the next step of a publication, which may be the remedy, would look like a dead engine.
ONCE = {"Connection": "close"}
# Longer bodies are given to aiohttp as a stream: it would send one long piece without giving the loop to other tasks.
LARGE_BYTES = 1 << 20


class Connection:
    """Asynchronous HTTP client of the server at ``url``. It has no retries and no deadlines; EnginePool adds them.

    Raises InfrastructureFault("engine", cause) with cause ``connection``, ``unauthorized``, ``http 5xx`` or ``bad
    answer``, and EngineRejected for what a retry would not change.
    """

    def __init__(self, url: str, *, api_key: str = "", name: str = "engine") -> None:
        self.url, self.name = url.rstrip("/"), name
        self._headers = {"Content-Type": JSON} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON answer of a GET request."""
        async with self.request("GET", path) as response:
            return decoded(await response.read(), self.name)

    async def post(
        self, path: str, body: bytes, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """POST a body, JSON unless ``headers`` say otherwise; returns the JSON answer, or {} if the answer is none."""
        async with self.request("POST", path, body, params, headers) as response:
            answer = await response.read()
            return decoded(answer, self.name) if response.content_type == "application/json" else {}

    async def control(self, path: str, body: Mapping[str, Any] | None = None, **params: str) -> dict[str, Any]:
        """POST to one of the control routes (pause, weights, cache) and return its JSON answer."""
        return await self.post(path, orjson.dumps(body) if body is not None else b"", params, ONCE)

    async def chunks(
        self, path: str, body: bytes, read: Callable[[dict[str, Any]], Iterable[Generation]]
    ) -> AsyncGenerator[Generation]:
        """What ``read`` makes of each server-sent event that answers a POST. Also raises InfrastructureFault with cause
        ``stream error`` for an event that is an error, and ``bad answer`` for a stream without a last chunk."""
        finished = False
        async with self.request("POST", path, body) as response:
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = decoded(line[6:], self.name)
                if "error" in event:
                    raise InfrastructureFault("engine", "stream error", f"{self.name}: {event['error']}")
                for chunk in read(event):
                    finished = finished or bool(chunk.finish_reason)
                    yield chunk
        if not finished:
            raise InfrastructureFault("engine", "bad answer", f"{self.name}: the stream ended before its last chunk")

    async def answers(self, path: str, seconds: float) -> bool:
        """Whether a GET request is answered with 200 within ``seconds``. Raises EngineRejected for 4xx."""
        try:
            async with asyncio.timeout(seconds), self.request("GET", path):
                return True
        except (InfrastructureFault, TimeoutError):
            return False

    async def metrics(self, seconds: float) -> str:
        """The server's Prometheus metrics, as text. Raises TimeoutError after ``seconds``."""
        async with asyncio.timeout(seconds), self.request("GET", "/metrics") as response:
            return await response.text()

    async def close(self) -> None:
        """Close the connections of the running loop, and forget those of loops that have ended."""
        for loop in [loop for loop in self._sessions if loop.is_closed() or loop is asyncio.get_running_loop()]:
            session = self._sessions.pop(loop)
            if not loop.is_closed():
                await session.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; its answer is 200."""
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
