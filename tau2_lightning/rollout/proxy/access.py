"""The access of episodes' agents to the policy: our own clients, and the address and key for any OpenAI client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from tau2_lightning.rollout.episode.client import HttpPolicyClient, PolicyClient
from tau2_lightning.rollout.episode.workflow import Access

from .chat_service import ChatService
from .direct import DirectPolicyClient


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
        httpx.AsyncClient(transport=AiohttpTransport(client=connections), timeout=timeout) as http_client,
    ):

        def client(api_key: str) -> PolicyClient:
            if over_http:
                return HttpPolicyClient(base_url, api_key, connections, timeout)
            return DirectPolicyClient(service, api_key, timeout)

        yield Access(base_url, http_client, client)
