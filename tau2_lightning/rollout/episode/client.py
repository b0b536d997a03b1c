"""The agent's side of a session: one client interface, and its form over HTTP."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from tau2_lightning.errors import InfrastructureFault


class RequestRejected(Exception):
    """The proxy answered 400. ``code`` is its stable error code, e.g. ``context_length_exceeded``."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class PolicyClient(ABC):
    """Chat completions of one session. ``timeout`` in seconds.

    Never retries: a hidden second request would be a second, unrecorded sample. The forms are
    ``HttpPolicyClient`` and, for episodes in the proxy's process, ``proxy.direct.DirectPolicyClient``; both raise the
    same errors.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The assistant message that answers the chat completion request ``body``.

        Raises RequestRejected for a 400, and InfrastructureFault: ``engine``/``timeout`` when no answer came in time,
        ``proxy``/``connection`` when there was no connection, and for any other status the fault of the error body's
        code (`InfrastructureFault.of_code`), or of ``http_<status>`` where it has none.
        """
        try:
            async with asyncio.timeout(self._timeout):
                status, answer = await self._ask(body)
        except TimeoutError as error:
            raise InfrastructureFault("engine", "timeout", f"no completion in {self._timeout:g} s") from error
        if status != 200:
            raise failure(status, answer)
        message: dict[str, Any] = answer["choices"][0]["message"]
        return message

    @abstractmethod
    async def _ask(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        """HTTP status and JSON body of the answer; the text of a body that is not JSON."""


def failure(status: int, answer: Any) -> Exception:
    """The error for an answer whose status is not 200."""
    try:
        code, message = str(answer["error"]["code"]), str(answer["error"]["message"])
    except (KeyError, TypeError):  # not an error body of our proxy
        code, message = f"http_{status}", str(answer)[:500]
    return RequestRejected(code, message) if status == 400 else InfrastructureFault.of_code(code, message)


class HttpPolicyClient(PolicyClient):
    """Talks to the OpenAI API at ``base_url`` as the owner of ``api_key``.

    The openai package validates and re-serialises the whole history at every turn, which costs more than the episode
    itself; both send the same bytes. aiohttp without httpx above it: 1076 calls per CPU second in
    ``benchmarks/proxy_overhead.py``'s dialogue, 844 through httpx.
    """

    def __init__(self, base_url: str, api_key: str, session: aiohttp.ClientSession, timeout: float) -> None:
        super().__init__(timeout)
        self._session, self._url = session, base_url.rstrip("/") + "/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}

    async def _ask(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        try:
            data = orjson.dumps(body)
        except TypeError as error:
            raise RequestRejected("invalid_json", f"the body is not JSON: {error}") from error
        try:
            async with self._session.post(self._url, data=data, headers=self._headers) as answer:
                status, content = answer.status, await answer.read()
        except aiohttp.ClientError as error:
            raise InfrastructureFault("proxy", "connection", repr(error)) from error
        try:
            return status, orjson.loads(content)
        except orjson.JSONDecodeError:
            return status, content.decode(errors="replace")
