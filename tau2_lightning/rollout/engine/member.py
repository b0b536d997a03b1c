"""One server of a pool: its client, its process if we launched it, and its state."""

from __future__ import annotations

import asyncio
import time

import structlog

from .client import EngineClient
from .server import EngineServer

log = structlog.get_logger(__name__)


class EngineMember:
    """One server of a pool, with what the pool knows of it. ``version`` is the weight version it serves.

    ``lock`` is held by whoever changes its weights. A member that is not ``ready`` gets no requests; one that is
    ``stale`` answers, but with weights nobody should see: the next publication makes it ready.
    """

    def __init__(self, client: EngineClient, server: EngineServer | None) -> None:
        self.client, self.server = client, server
        self.name = client.name
        self.ready = False
        self.stale = False
        self.version = 0
        self.inflight = 0
        self.restarts = 0
        self.progress_at = time.monotonic()
        self.lock = asyncio.Lock()
        self.failure: Exception | None = None

    def condemn(self, why: str) -> None:
        """Take it out of service: a launched server is killed (and then restarted), a remote one waits for weights."""
        log.warning("engine condemned", engine=self.name, why=why)
        self.ready = False
        self.stale = self.server is None
        if self.server:
            self.server.kill()
