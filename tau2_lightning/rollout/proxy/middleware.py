"""Around every HTTP request: count it, time it, refuse it when the proxy is full."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import bearer_key
from .errors import APIError, as_api_error
from .meter import RequestMeter


class Observe:
    """Wraps the application: ``meter`` measures every request under its route.

    ``paths`` are those without parameters: their requests have a route already when they are refused before routing.
    ``refused(key, error)`` hears of requests that come when the proxy is full.
    """

    def __init__(
        self, app: ASGIApp, meter: RequestMeter, paths: frozenset[str], refused: Callable[[str, APIError], None]
    ) -> None:
        self.app, self._meter, self._paths, self._refused = app, meter, paths, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Only known routes become labels: a scanner must not fill the registry.
        path, started = scope["path"], False
        with self._meter.measure(path if path in self._paths else "other") as request:

            async def observed(message: Message) -> None:
                nonlocal started
                if message["type"] == "http.response.start":
                    started, request.status = True, message["status"]
                await send(message)

            async def counted() -> Message:
                message = await receive()
                if size := len(message.get("body", b"")):
                    self._meter.takes(request, size)
                return message

            try:
                self._admit(scope)
                await self.app(scope, counted, observed)
            except Exception as error:
                if started:
                    raise
                # Here and not in Starlette's outermost layer, which raises an unexpected error again after its answer.
                await as_api_error(error).response()(scope, counted, observed)
            finally:
                request.route = getattr(scope.get("route"), "path", request.route)

    def _admit(self, scope: Scope) -> None:
        try:
            self._meter.admit()
        except APIError as error:
            self._refused(bearer_key(Request(scope)), error)
            raise
