"""Web applications on a free port of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def running(app: web.Application, *, backlog: int = 128) -> AsyncIterator[str]:
    """Serve ``app``; gives its URL, with ``/v1``."""
    runner = web.AppRunner(app, shutdown_timeout=0.5)  # not a minute for a handler that hangs on purpose
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=backlog)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()
