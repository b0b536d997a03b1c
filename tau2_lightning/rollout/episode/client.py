"""The agent's side of a session: chat completions as plain JSON over the client that all episodes share."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from tau2_lightning.errors import InfrastructureFault


class RequestRejected(Exception):
    """The proxy answered 400. ``code`` is its stable word, e.g. ``context_length_exceeded``."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class StraightClient(httpx.AsyncClient):
    """An httpx client without cookies, redirects, authentication flows and hooks: from ``send`` to the transport.

    What a client does around its transport is a third of what a short call costs, and a proxy of our own needs none
    of it. Everything else (``post``, ``stream``, closing) is httpx's.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, timeout: float) -> None:
        super().__init__(transport=transport, timeout=timeout)
        self._straight = transport

    async def send(self, request: httpx.Request, *, stream: bool = False, **_: Any) -> httpx.Response:
        """Send ``request`` as it is; the options of httpx's ``send`` other than ``stream`` have no meaning here."""
        response = await self._straight.handle_async_request(request)
        response.request = request
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response


class PolicyClient:
    """Talks to the OpenAI API at ``base_url`` as the owner of ``api_key``.

    The openai package validates and re-serialises the whole history every turn, which costs more than the episode
    itself; on the wire both are the same. Never retries: a hidden second request would be a second sample that
    nobody recorded. ``timeout`` in seconds.
    """

    def __init__(self, base_url: str, api_key: str, http_client: httpx.AsyncClient, timeout: float) -> None:
        self._http, self._timeout = http_client, timeout
        self._url = httpx.URL(base_url.rstrip("/") + "/chat/completions")
        self._headers = httpx.Headers({"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"})

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The assistant message that answers the chat completion request ``body``.

        Raises RequestRejected for a 400, and InfrastructureFault: ``engine``/``timeout`` when no answer came in time,
        ``proxy``/``connection`` when there was no connection, and for any other status ``proxy``/what the error body
        says (``engine_crash``, ``session_closed``, ...), or ``http_<status>`` where it says nothing.
        """
        try:
            async with asyncio.timeout(self._timeout):  # a transport without sockets knows no timeouts
                # Not `post`, which parses the address and merges the headers anew: a seventh of a call.
                answer = await self._http.send(
                    httpx.Request("POST", self._url, headers=self._headers, content=orjson.dumps(body))
                )
        except (httpx.TimeoutException, TimeoutError) as error:
            raise InfrastructureFault("engine", "timeout", f"no completion in {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise InfrastructureFault("proxy", "connection", repr(error)) from error
        if answer.status_code != 200:
            raise _failure(answer)
        message: dict[str, Any] = orjson.loads(answer.content)["choices"][0]["message"]
        return message


def _failure(answer: httpx.Response) -> Exception:
    try:
        problem = orjson.loads(answer.content)["error"]
        code, message = str(problem["code"]), str(problem["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):  # not our proxy's words
        code, message = f"http_{answer.status_code}", answer.text[:500]
    if answer.status_code == 400:
        return RequestRejected(code, message)
    return InfrastructureFault("proxy", code, message)
