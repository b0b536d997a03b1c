"""The proxy's HTTP server, inside an event loop that already runs: the trainer hosts it next to the episodes."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import structlog
import uvicorn

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault, Violation
from tau2_lightning.launch.budget import Budget

from .limits import BoundedHttp

log = structlog.get_logger(__name__)
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 3600.0


class ProxyServer:
    """``await start()``, talk to ``base_url``, ``await stop()``. ``port`` 0 takes any free one.

    ``start`` raises ConfigError naming ``rollout.port`` when the address cannot be bound. A server that ends before
    ``stop`` is started again at the same address, at most ``MAX_RESTARTS`` times in an hour, counted in ``restarts``:
    the sessions stay in their store, and clients that wait for an answer see the connection break.
    """

    def __init__(self, app: Any, host: str = "127.0.0.1", port: int = 0, *, start_timeout: float = 10.0) -> None:
        self.host, self.port, self._start_timeout = host, port, start_timeout
        self._config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", proxy_headers=False, timeout_graceful_shutdown=5,
            backlog=4096, timeout_keep_alive=300, server_header=False, http=BoundedHttp, ws="none",
        )  # fmt: skip
        self.restarts = 0
        self._budget = Budget(MAX_RESTARTS, RESTART_WINDOW_SECONDS)
        self._server = _Server(self._config)
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None

    @property
    def base_url(self) -> str:
        """The OpenAI base URL, ``http://host:port/v1``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    async def start(self) -> None:
        """Bind and serve from a task of the running loop; returns when requests are answered."""
        self._socket = self._bind()
        self.port = self._socket.getsockname()[1]
        self._stopping = False
        self._task = asyncio.create_task(self._keep_serving(), name="proxy")
        waited = 0.0
        while not self._server.started:
            if self._task.done():
                await self._task
                raise DeadlineExceeded("proxy", waited, "starting (it stopped at once)")
            if waited > self._start_timeout:
                raise DeadlineExceeded("proxy", self._start_timeout, "starting")
            await asyncio.sleep(0.01)
            waited += 0.01

    async def stop(self, within: float = 10.0) -> None:
        """Stop taking requests, wait a moment for the running ones, close. Raises DeadlineExceeded when it does not
        end."""
        if self._task is None:
            return
        self._stopping = self._server.should_exit = True
        try:
            async with asyncio.timeout(within):
                await self._task
        except TimeoutError as error:
            raise DeadlineExceeded("proxy", within, "stopping") from error
        finally:
            self._task = None
            if self._socket is not None:
                self._socket.close()

    async def _keep_serving(self) -> None:
        while True:
            assert self._socket is not None
            serving = asyncio.create_task(self._server.serve([self._socket]), name="proxy server")
            try:
                await asyncio.wait([serving])
            finally:
                serving.cancel()
            if self._stopping or not self._server.started:
                return serving.result()
            error = None if serving.cancelled() else serving.exception()
            log.error("the proxy's server ended", error=repr(error), exc_info=error, restarts=self.restarts)
            self.restarts += 1
            if not self._budget.spend():
                ended = f"its server ended {self._budget.spent} times in {RESTART_WINDOW_SECONDS:g} s"
                raise InfrastructureFault("proxy", "crash", ended) from error
            await self._server.let_go()
            self._socket.close()
            self._socket, self._server = self._bind(), _Server(self._config)

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.host, self.port))
        except (OSError, OverflowError) as error:
            sock.close()
            problem = f"cannot listen on {self.host}:{self.port}: {error}"
            raise ConfigError(
                [Violation("rollout.port", self.port, problem, "Use a free port, or 0 to let the system choose.")]
            ) from error
        sock.setblocking(False)
        return sock


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process belongs to the trainer."""

    def install_signal_handlers(self) -> None:
        return None

    def capture_signals(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    async def let_go(self) -> None:
        """Close what a failed server has left open: listeners, connections and the application's lifespan."""
        for listening in self.servers:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self.lifespan.shutdown()
