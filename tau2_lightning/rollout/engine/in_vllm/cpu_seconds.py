"""ASGI middleware for vLLM's API server: the processor time of the engine core, which tells a long step from a hang."""

from __future__ import annotations

import asyncio
import json

import psutil

from .auth import Application, Receive, Scope, Send

PATH = "/cpu_seconds"


class CpuSeconds:
    """Answers ``GET /cpu_seconds`` with ``{"cpu_seconds": ...}``: of all processes that the API server has started."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        used = await asyncio.to_thread(seconds_of_children)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"cpu_seconds": used}).encode()})


def seconds_of_children() -> float:
    """User and system time of this process's descendants, those that have ended included."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it has just ended
        total += times.user + times.system + times.children_user + times.children_system
    return total
