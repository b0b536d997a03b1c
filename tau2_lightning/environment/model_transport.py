"""One HTTP request to a model of the environment, by openai's client or by litellm. Never retries."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import openai

from .model_endpoint import ModelEndpoint

# One client per event loop: its connections belong to the loop that opened them.
_openai: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], openai.AsyncOpenAI]] = WeakKeyDictionary()


async def send(endpoint: ModelEndpoint, request: Mapping[str, Any]) -> Any:
    """The chat completion (openai's or litellm's object) that answers ``request``. Raises their errors."""
    if endpoint.base_url:
        client = openai_client(endpoint.base_url, endpoint.api_key)
        return await client.chat.completions.create(
            model=endpoint.model.removeprefix("openai/"), timeout=endpoint.timeout_s, **_for_openai(request)
        )
    import litellm

    key = {"api_key": endpoint.api_key} if endpoint.api_key else {}
    return await litellm.acompletion(
        model=endpoint.model, timeout=endpoint.timeout_s, num_retries=0, caching=False, **key, **request
    )


def openai_client(base_url: str, api_key: str) -> openai.AsyncOpenAI:
    """openai's client of one server in the running event loop."""
    clients = _openai.setdefault(asyncio.get_running_loop(), {})
    if (base_url, api_key) not in clients:
        clients[base_url, api_key] = openai.AsyncOpenAI(base_url=base_url, api_key=api_key or "none", max_retries=0)
    return clients[base_url, api_key]


def _for_openai(request: Mapping[str, Any]) -> dict[str, Any]:
    """``request`` with the fields that OpenAI does not have, such as vLLM's ``top_k``, in the body's extra part."""
    known = _known_fields()
    extra = {name: value for name, value in request.items() if name not in known}
    sent = {name: value for name, value in request.items() if name in known}
    if extra:
        sent["extra_body"] = {**extra, **(request.get("extra_body") or {})}
    return sent


@cache
def _known_fields() -> frozenset[str]:
    return frozenset(inspect.signature(openai.resources.chat.AsyncCompletions.create).parameters)
