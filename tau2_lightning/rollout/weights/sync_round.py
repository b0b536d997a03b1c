"""One weight publication: the same steps in every engine server, their times, and the servers that fail a step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.client import EngineClient, PauseMode
from tau2_lightning.rollout.engine.fleet import Fleet, Replay
from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.engine.member import EngineMember
from tau2_lightning.rollout.engine.sleep import wake_cache, wake_weights

Part = Literal["gather", "write", "send", "pause", "load", "resume"]
PARTS: tuple[Part, ...] = ("gather", "write", "send", "pause", "load", "resume")
RESUME_SECONDS = 30.0


@dataclass(frozen=True)
class SyncReport:
    """The cost of one publication.

    ``seconds`` has the parts ``gather`` (the trainer collects its tensors), ``write`` (weight files, and the search for
    changes), ``send`` (HTTP, while engines still generate), ``pause`` (until no engine schedules), ``load`` (engines
    load the weights), ``resume`` (prefix caches are reset, engines schedule again, restarted engines are waited for),
    and ``total``: their sum, including the time between them. Parts that did not happen are 0. ``bytes`` is the size of
    what one engine was sent, or the largest such size; ``whole_bytes`` is the size of all weights in the dtype in which
    they are sent. ``fallbacks`` counts engines that refused changes and then got all weights. ``restarted`` names
    engines that failed and restarted with the new weights.
    """

    version: int
    bytes: int
    seconds: dict[str, float]
    restarted: tuple[str, ...] = ()
    whole_bytes: int = 0
    fallbacks: int = 0

    def metrics(self) -> dict[str, float]:
        """The report under the names of docs/metrics.md."""
        metrics = {f"time/sync/{part}": value for part, value in self.seconds.items() if part != "total"}
        fraction = self.bytes / self.whole_bytes if self.whole_bytes else 1.0
        return metrics | {
            "sync/bytes": float(self.bytes),
            "sync/bytes_fraction": fraction,
            "sync/delta_fallbacks": float(self.fallbacks),
        }


class SyncRound:
    """The steps of one publication in every server that still works.

    A server that restarts during the round counts as a new one: it loads the weights at its start, and takes no part in
    further steps. A server that fails a step must not serve half of the weights, so it is taken out of service; when it
    is remote, the round ends with InfrastructureFault.
    """

    def __init__(self, fleet: Fleet, version: int, mode: PauseMode, timeout: float) -> None:
        self.fleet, self.version, self.mode = fleet, version, mode
        self.bytes = self.whole_bytes = self.fallbacks = 0
        self.members: list[EngineMember] = []
        self.failed: list[EngineMember] = []
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._begin = time.monotonic()
        self._ends = self._begin + timeout
        self._lives: dict[str, int] = {}

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Add the time inside to part ``name``. Parts do not overlap."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - begin

    def enlist(self) -> None:
        """Include the servers that answer now. The others load a kept copy of the weights when they start."""
        self.members = [member for member in self.fleet.members if member.ready or member.stale]
        self._lives = {member.name: member.restarts for member in self.members}

    async def run(self, load: Callable[[], Awaitable[None]]) -> None:
        """Pause (or wake), ``load``, reset the prefix caches, resume. Servers are resumed in every case."""
        with self.part("pause"):
            for member in self.members:
                await member.lock.acquire()
        self.fleet.paused = True
        asleep, self.fleet.asleep = self.fleet.asleep, False  # a server that restarts from now on stays awake
        try:
            if asleep:  # and therefore paused
                await self.each("load", "wake", wake_weights)
            else:
                await self.each("pause", "pause", lambda member: member.client.pause(self.mode))
            await load()
            if asleep:
                await self.each("resume", "wake", wake_cache)
            await self.each("resume", "reset", lambda member: member.client.reset_prefix_cache())
        except BaseException:
            # Any server may hold half of the new weights now. The living ones are resumed in any case.
            for member in self._working():
                self._fail(member, f"publishing version {self.version} broke off")
            self.failed = list(self.members)
            raise
        finally:
            await self._resume()
            self.fleet.paused = False
            for member in self.members:
                member.lock.release()
        for member in self._working():
            member.version, member.ready, member.stale = self.version, True, False
            member.waits.end()
        self.fleet.announce()

    async def deliver(self, call: Callable[[EngineClient], Coroutine[Any, Any, Any]]) -> None:
        """Make one call to the client of every server, as a part of loading; returns when all have answered."""
        await self.each("load", "load", lambda member: call(member.client))

    async def each(self, part: Part, step: str, call: Callable[[EngineMember], Coroutine[Any, Any, Any]]) -> None:
        """Take one step in every server that still works; the servers that fail it are taken out of service."""
        working = [member for member in self.members if member not in self.failed]
        left = max(0.1, self._ends - time.monotonic())
        steps = [member.within(call(member), left, f"publishing weights ({step})") for member in working]
        with self.part(part):
            results = await asyncio.gather(*steps, return_exceptions=True)
        for member, result in zip(working, results, strict=True):
            if isinstance(result, InfrastructureFault | EngineRejected):
                self._fail(member, f"{step}: {result}")
                if member.server is None:
                    raise InfrastructureFault("engine", "weight sync", f"{member.name}, {step}: {result}") from result
            elif isinstance(result, BaseException):
                raise result

    async def recover(self, replay: Replay | None) -> SyncReport:
        """Wait for servers that restart; ``replay`` brings the kept weights into one, None where none were kept.

        Raises InfrastructureFault when no server has taken the weights.
        """
        late = [member for member in self.fleet.members if member not in self._working()]
        if not self._working() and not (late and replay):
            raise InfrastructureFault("engine", "weight sync", f"no engine took version {self.version}")
        if late and replay:
            with self.part("resume"):
                await self._wait_for(late, replay)
        total = time.monotonic() - self._begin
        restarted = tuple(member.name for member in late)
        seconds = {**self._seconds, "total": total}
        return SyncReport(self.version, self.bytes, seconds, restarted, self.whole_bytes, self.fallbacks)

    async def _wait_for(self, late: list[EngineMember], replay: Replay) -> None:
        doing = f"restarting {', '.join(member.name for member in late)} with weights of version {self.version}"
        limit = self.fleet.settings.start_timeout_s
        await self.fleet.wait_until(lambda: all(member.ready or member.stale for member in late), limit, doing)
        for member in late:
            async with member.lock:
                if member.version != self.version:  # it started before there were kept weights
                    member.ready = await member.within(replay(member), limit, doing)
                    member.stale = not member.ready
                    if member.ready:
                        member.waits.end()
        self.fleet.announce()

    async def _resume(self) -> None:
        alive = [member for member in self.members if member.server is None or member.server.alive]
        steps = [member.within(member.client.resume(), RESUME_SECONDS, "resuming") for member in alive]
        with self.part("resume"):
            results = await asyncio.gather(*steps, return_exceptions=True)
        for member, result in zip(alive, results, strict=True):
            if isinstance(result, Exception) and member not in self.failed:
                self._fail(member, f"resume: {result}")

    def _working(self) -> list[EngineMember]:
        """The servers that have taken every step so far."""
        return [m for m in self.members if m not in self.failed and m.restarts == self._lives[m.name]]

    def _fail(self, member: EngineMember, why: str) -> None:
        self.failed.append(member)
        if member.restarts == self._lives[member.name]:  # else it has restarted: the new process did not fail
            member.take_out_of_service(why)
