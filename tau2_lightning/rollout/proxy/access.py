"""The access of episodes' agents to the policy: our own clients, and the address and key for any OpenAI client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.episode.client import HttpPolicyClient, PolicyClient
from tau2_lightning.rollout.episode.workflow import Access

from .chat_service import ChatService
from .direct import DirectPolicyClient

# A client waits longer than the engine may take, so that it hears the proxy's own error.
_PATIENCE = 10.0


@dataclass(frozen=True)
class NotingTransport(httpx.AsyncBaseTransport):
    """``inner``, which tells a session when the connection of one of its requests failed.

    The proxy itself may know nothing of such a request: while its server starts again, nobody listens. The error is a
    ConnectError then; httpx_aiohttp would call it a timeout.
    """

    inner: httpx.AsyncBaseTransport
    service: ChatService

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request``."""
        try:
            return await self.inner.handle_async_request(request)
        except httpx.TransportError as error:
            lost = error.__cause__
            if not isinstance(lost, aiohttp.ClientError) or isinstance(lost, TimeoutError):
                raise
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            self.service.store.refused(key, InfrastructureFault("proxy", "connection", repr(lost)))
            raise httpx.ConnectError(str(lost), request=request) from lost

    async def aclose(self) -> None:
        """Close ``inner``."""
        await self.inner.aclose()


@asynccontextmanager
async def episode_access(
    service: ChatService, base_url: str, *, over_http: bool, timeout: float
) -> AsyncIterator[Access]:
    """The access to ``service`` that every episode of a run shares; ``timeout`` in seconds, of one completion.

    The built-in episodes live in the proxy's process and need no socket. A user's own agents go ``over_http``, so they
    run the same way outside this process.
    """
    # aiohttp below httpx: httpx's own pool walks every connection for each request, which is slow with 128 episodes.
    unlimited = aiohttp.ClientTimeout(total=None)  # every request has a timeout of its own
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=unlimited) as connections,
        httpx.AsyncClient(
            transport=NotingTransport(AiohttpTransport(client=connections), service), timeout=timeout + _PATIENCE
        ) as http_client,
    ):

        def client(api_key: str) -> PolicyClient:
            if over_http:
                return HttpPolicyClient(base_url, api_key, connections, timeout + _PATIENCE)
            return DirectPolicyClient(service, api_key, timeout + _PATIENCE)

        yield Access(base_url, http_client, client)
