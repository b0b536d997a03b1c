"""An engine server as a supervised child process: its start, its log and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import psutil

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault, Violation
from tau2_lightning.launch import watchdog
from tau2_lightning.launch.net import free_port

from .backends import check_installed, server_command, server_environment
from .cores import cores_below, ended
from .settings import EngineSettings

STOP_SECONDS = 8.0
KILL_SECONDS = 30.0  # what the kernel may need to free the memory of a killed engine
PORT_SECONDS = 10.0
POLL_SECONDS = 0.05
START_ATTEMPTS = 3
_REPLAY_HINT = (
    "It was started with router replay. If that is the cause, rollout.return_routed_experts=false trains without it."
)


class EngineServer:
    """One server. ``start`` returns immediately; ``wait_ready`` returns when it answers; ``stop`` ends all
    processes.

    The child is a watchdog (see ``launch.watchdog``) that leads a session with the engine's processes in it. Unless a
    port is configured, each start takes another one: read ``url`` after ``wait_ready`` has returned.

    Raises ConfigError when the engine is not installed or the configured port is taken, InfrastructureFault("engine",
    "crash") with the end of the log when the server dies while it starts, DeadlineExceeded when it does not answer or
    end in time.
    """

    def __init__(self, settings: EngineSettings, index: int = 0) -> None:
        self.place = settings.place(index)
        self.settings, self.index = replace(settings, host=self.place.host), index
        self.name = f"engine {index}"
        self.port = 0
        self.log_path = self._log_path()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._started_at = 0.0
        self._log_begins = 0
        self._cores: tuple[psutil.Process, ...] = ()

    @property
    def url(self) -> str:
        """The base URL of the server's routes."""
        return f"http://{self.settings.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the watchdog, which is also the id of the process group."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the child runs with all that compute for it, and was not killed."""
        running = self._process is not None and not self._killed and self._process.poll() is None
        return running and ended(self._cores) is None

    @property
    def end(self) -> str:
        """What ended, in words, of a server that is not alive."""
        core = ended(self._cores)
        return "its process ended" if core is None else f"its process {core.pid}, which computes, ended"

    def claim_port(self) -> None:
        """Choose the port of the next start. Raises ConfigError when the configured one is taken."""
        wanted = self.settings.port + self.index if self.settings.port else 0
        try:
            # Ports of another node cannot be checked here; if this one is taken there, the start tries another.
            self.port = free_port("" if self.place.agent else self.settings.host, 0 if self.place.agent else wanted)
        except OSError as error:
            remedy = "Choose another one, or 0 for any free port"
            raise ConfigError([Violation("rollout.engine_port", wanted, f"cannot listen: {error}", remedy)]) from error

    def start(self) -> None:
        """Start the child on the claimed port and return. Raises ConfigError."""
        if not self.place.agent:  # else it is the other node that has the engine
            check_installed(self.settings)
        if not self.port:
            self.claim_port()
        command, environment = server_command(self.settings, self.port), server_environment(self.settings, self.index)
        if self.place.agent:
            command, environment = self.place.through_agent(self.name, command, environment)
        else:
            command = watchdog.guarded(command, STOP_SECONDS)
        self._started_at, self._killed, self._cores = time.monotonic(), False, ()
        with self.log_path.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    async def restart(self) -> None:
        """End the remaining processes of the child and start another, on another port unless one is configured.

        Raises ConfigError when the configured port stays taken for ``PORT_SECONDS``, DeadlineExceeded as ``gone``.
        """
        self.kill()
        await self.gone()
        ends = time.monotonic() + PORT_SECONDS
        while True:
            try:
                self.claim_port()
            except ConfigError:
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(POLL_SECONDS)
            else:
                return self.start()

    async def wait_ready(self) -> float:
        """Wait until the server answers; returns the seconds since ``start``."""
        limit, attempts = self.settings.start_timeout_s, 1
        # With our key: another program that took the port does not know it.
        headers = {"Authorization": f"Bearer {self.settings.api_key}"}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), headers=headers) as session:
            while True:
                waited = time.monotonic() - self._started_at
                if not self.alive:
                    if not self._lost_its_port() or attempts == START_ATTEMPTS:
                        hint = f"\n{_REPLAY_HINT}" if self.settings.routed_experts else ""
                        crash = f"{self.name} died while starting\n{self.log_tail()}{hint}"
                        raise InfrastructureFault("engine", "crash", crash)
                    attempts += 1
                    await self.restart()
                    continue
                if waited > limit:
                    doing = f"starting {self.name} on port {self.port}; its log ends:\n{self.log_tail()}"
                    raise DeadlineExceeded("engine", limit, doing)
                try:
                    async with session.get(f"{self.url}/v1/models") as response:
                        if response.status == 200:
                            self._cores = () if self.place.agent else cores_below(self.pid or 0)
                            return waited
                except (aiohttp.ClientError, TimeoutError):
                    pass  # not listening yet
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End the server: SIGTERM first, SIGKILL of the group after ``STOP_SECONDS``. Safe to call twice."""
        if self.alive:
            assert self._process is not None
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, STOP_SECONDS + 2)
        self.kill()
        await self.gone()

    def kill(self) -> None:
        """SIGKILL the whole process group and return immediately; ``gone`` waits for its end."""
        if self._process is None or self._killed:
            return  # once only: later the number may be another group's
        self._killed = True
        with contextlib.suppress(ProcessLookupError):  # the watchdog has already ended its group and itself
            os.killpg(self._process.pid, signal.SIGKILL)

    async def gone(self, within: float = KILL_SECONDS) -> None:
        """Wait until no process of the group is alive. Raises DeadlineExceeded with the ids of those that are."""
        if self._process is None:
            return
        ends = time.monotonic() + within
        while left := watchdog.living_in_group(self._process.pid):
            if time.monotonic() > ends:
                raise DeadlineExceeded("engine", within, f"ending {self.name}: processes {left} are still there")
            await asyncio.sleep(POLL_SECONDS)
        self._process.wait(1.0)
        if self._process.stdin:
            self._process.stdin.close()

    def log_tail(self, lines: int = 25) -> str:
        """The last ``lines`` lines of the server's log, for error messages."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        tail = "\n".join(f"  | {line[:300]}" for line in text.splitlines()[-lines:])
        return f"{tail}\n  (all of it: {self.log_path})"

    def _lost_its_port(self) -> bool:
        """Whether another program took the port after it was chosen and before the server used it."""
        if self.settings.port:
            return False
        with self.log_path.open("rb") as log:
            log.seek(self._log_begins)
            return b"address already in use" in log.read().lower()

    def _log_path(self) -> Path:
        path = self.settings.log_path or Path(tempfile.mkdtemp(prefix="tau2-lightning-")) / "engine.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_stem(f"{path.stem}-{self.index}") if self.index else path
