"""Around every request: count it, time it, and refuse it when the proxy is full. Plain ASGI, microseconds."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .proxy_errors import APIError
from .proxy_metrics import ProxyMetrics


class Observe:
    """Wraps the application. At most ``max_concurrent`` requests are at work; the next one gets a 503."""

    def __init__(self, app: ASGIApp, metrics: ProxyMetrics, max_concurrent: int) -> None:
        self.app, self._metrics, self._limit = app, metrics, max_concurrent
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
            else:
                await self.app(scope, receive, observed)
        finally:
            self._at_work -= 1
            self._metrics.in_flight.set(self._at_work)
            # Only known routes become labels: a scanner must not fill the registry.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
