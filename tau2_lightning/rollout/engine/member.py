"""One server of a pool: its client, its process if this program started it, and its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

from tau2_lightning.errors import DeadlineExceeded

from .client import EngineClient
from .server import EngineServer
from .waits import Waits

log = structlog.get_logger(__name__)
T = TypeVar("T")


class EngineMember:
    """One server of a pool, with the pool's data about it.

    ``server`` is None for a remote server, which this program did not start. ``version`` is the weight version it
    serves. ``lock`` is held during a change of its weights. A member that is not ``ready`` gets no requests. A
    ``stale`` member answers, but with weights that must not be used: the next publication makes it ready again.
    ``inflight`` counts its running requests, ``restarts`` counts its failures; ``progress_at`` is the last sign of work
    (seconds of ``time.monotonic``); ``waits`` says what it is waited for while it does not serve; ``failure`` is the
    error that ended its supervision.
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
        self.waits = Waits()
        self.failure: Exception | None = None

    def take_out_of_service(self, why: str) -> None:
        """Take it out of service. A server that this program started is killed, then restarted; a remote one waits for
        weights."""
        log.warning("engine taken out of service", engine=self.name, why=why)
        self.ready = False
        self.stale = self.server is None
        self.waits.begin("is ended" if self.server else "waits for the next weight sync", why, self.progress_at)
        if self.server:
            self.server.kill()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a running request."""
        self.inflight += 1
        try:
            yield
        finally:
            self.inflight -= 1

    async def within(self, work: Coroutine[Any, Any, T], seconds: float, doing: str) -> T:
        """Await ``work`` of this server for at most ``seconds``; DeadlineExceeded names the server and ``doing``."""
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise self.late(seconds, doing) from error

    def late(self, seconds: float, doing: str) -> DeadlineExceeded:
        """The error of a request that did not end within ``seconds``."""
        return DeadlineExceeded("engine", seconds, f"{doing} on {self.name} at {self.client.url}")
