"""ASGI middleware for vLLM's API server: every route except ``/health`` needs the engine's key.

vLLM's own ``--api-key`` covers ``/v1`` and ``/inference``, but not the routes that pause, load weights or call into
workers, which weight sync needs.
"""

from __future__ import annotations

import hmac
import os

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

KEY_VARIABLE = "VLLM_API_KEY"


class RequireKey:
    """Answers 401 to requests without ``Authorization: Bearer <$VLLM_API_KEY>``; compares in constant time."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._expected = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        if hmac.compare_digest(given, self._expected):
            await self.app(scope, receive, send)
            return
        refusal = Response(b'{"error":"unauthorized"}', 401, media_type="application/json")
        await refusal(scope, receive, send)
