"""The agent's side of a session: chat completions as plain JSON, over HTTP or to a proxy of the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from starlette.types import ASGIApp

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout import in_process


class RequestRejected(Exception):
    """The proxy answered 400. ``code`` is its stable word, e.g. ``context_length_exceeded``."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class PolicyClient:
    """Talks to the OpenAI API at ``base_url`` as the owner of ``api_key``.

    The openai package validates and re-serialises the whole history every turn, which costs more than the episode
    itself; on the wire both are the same. Never retries: a hidden second request would be a second sample that
    nobody recorded. ``timeout`` in seconds. ``app``: the ASGI application that serves ``base_url``, where it lives in
    this process; it is then called without HTTP in between, and ``http_client`` is not used.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        http_client: httpx.AsyncClient,
        timeout: float,
        app: ASGIApp | None = None,
    ) -> None:
        self._url, self._http, self._timeout = base_url.rstrip("/") + "/chat/completions", http_client, timeout
        self._app, self._path = app, urlsplit(self._url).path
        self._headers = {"authorization": f"Bearer {api_key}", "content-type": "application/json"}
        self._raw_headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The assistant message that answers the chat completion request ``body``.

        Raises RequestRejected for a 400, and InfrastructureFault: ``engine``/``timeout`` when no answer came in time,
        ``proxy``/``connection`` when there was no connection, ``proxy``/``crash`` when ``app`` raised, and
        for any other status ``proxy``/what the error body says (``engine_crash``, ``session_closed``, ...), or
        ``http_<status>`` where it says nothing.
        """
        try:
            status, content = await self._post(orjson.dumps(body))
        except (httpx.TimeoutException, TimeoutError) as error:
            raise InfrastructureFault("engine", "timeout", f"no completion in {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise InfrastructureFault("proxy", "connection", repr(error)) from error
        if status != 200:
            raise _failure(status, content)
        message: dict[str, Any] = orjson.loads(content)["choices"][0]["message"]
        return message

    async def _post(self, content: bytes) -> tuple[int, bytes]:
        if self._app is not None:
            async with asyncio.timeout(self._timeout):
                return await in_process.post(self._app, self._path, content, self._raw_headers)
        answer = await self._http.post(self._url, content=content, headers=self._headers, timeout=self._timeout)
        return answer.status_code, answer.content


def _failure(status: int, content: bytes) -> Exception:
    try:
        problem = orjson.loads(content)["error"]
        code, message = str(problem["code"]), str(problem["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):  # not our proxy's words
        code, message = f"http_{status}", content[:500].decode(errors="replace")
    if status == 400:
        return RequestRejected(code, message)
    return InfrastructureFault("proxy", code, message)
