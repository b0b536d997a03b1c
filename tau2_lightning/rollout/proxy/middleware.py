"""Around every request: count it, time it, refuse it when the proxy is full, and shorten the way where it is hot."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError, as_api_error
from .metrics import ProxyMetrics

Handler = Callable[[Request], Awaitable[Response]]


class Observe:
    """Wraps the application. At most ``max_concurrent`` requests are at work; the next one gets a 503.

    ``direct`` maps paths to handlers of POST requests that are called here, past FastAPI's routing, dependencies and
    exception layers: a third of what a short call costs. The same handlers are FastAPI routes, which document them.
    """

    def __init__(self, app: ASGIApp, metrics: ProxyMetrics, max_concurrent: int, direct: Mapping[str, Handler]) -> None:
        self.app, self._metrics, self._limit, self._direct = app, metrics, max_concurrent, direct
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._at_work += 1
        self._metrics.in_flight.set(self._at_work)
        try:
            if self._at_work > self._limit:
                full = APIError(503, "overloaded", f"{self._limit} requests are at work, the limit of this proxy")
                await full.response()(scope, receive, observed)
            elif scope["method"] == "POST" and scope["path"] in self._direct:
                await self._answer(scope, receive, observed)
            else:
                await self.app(scope, receive, observed)
        finally:
            self._at_work -= 1
            self._metrics.in_flight.set(self._at_work)
            # Only known routes become labels: a scanner must not fill the registry.
            known = scope["path"] if scope["path"] in self._direct else "other"
            route = getattr(scope.get("route"), "path", known)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._direct[scope["path"]](Request(scope, receive, send))
        except Exception as error:  # noqa: BLE001 - the answer to a defect is a 500 in OpenAI's shape; its log says why
            response = as_api_error(error).response()
        await response(scope, receive, send)
