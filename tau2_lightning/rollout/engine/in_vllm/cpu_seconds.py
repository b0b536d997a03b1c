"""ASGI middleware for vLLM's API server: the processor time of the engine core, which distinguishes a long step from a
hang.
"""

from __future__ import annotations

import asyncio

import psutil
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .names import CPU_SECONDS
from .stacks import answer_with_stacks


class CpuSeconds:
    """Answers ``GET /cpu_seconds`` with ``{"cpu_seconds": ...}``: the sum over all processes below the API server."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        answer_with_stacks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != CPU_SECONDS:
            await self.app(scope, receive, send)
            return
        used = await asyncio.to_thread(seconds_of_children)
        await JSONResponse({"cpu_seconds": used})(scope, receive, send)


def seconds_of_children() -> float:
    """User and system time (seconds) of this process's descendants, including those that have ended."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it has just ended
        total += times.user + times.system + times.children_user + times.children_system
    return total
