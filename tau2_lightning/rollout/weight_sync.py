"""Brings the trainer's weights into every engine without a restart, and into those that restart later."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation
from tau2_lightning.rollout.engine import EngineMember, EnginePool, PauseMode
from tau2_lightning.rollout.engine_client import EngineRejected
from tau2_lightning.rollout.weight_files import WeightFiles, buckets

log = structlog.get_logger(__name__)

BUCKET_BYTES = 1 << 30


@dataclass(frozen=True)
class SyncReport:
    """What one publication cost. ``seconds`` by part: ``write``, ``pause``, ``load``, ``reset``, ``resume``, ``total``.

    ``bytes`` is the payload's size; ``restarted`` names engines that failed on the way and came back with the weights.
    """

    version: int
    bytes: int
    seconds: dict[str, float]
    restarted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """The files of the weights being served, kept for engines that restart."""

    version: int
    files: tuple[Path, ...]


class WeightPublisher:
    """Publishes weights to every engine of ``pool``.

    The sequence is pause, start, update (bucket by bucket), finish with the version, reset the prefix cache, resume;
    each step runs in all engines at once, and engines are resumed whatever happens. An engine that fails half-way must
    not serve: a launched one is restarted, and ``publish`` waits for it; a remote one raises InfrastructureFault.

    With ``keep_snapshot`` the files stay until the next publication, so that an engine that dies restarts at once with
    the current weights (all of them are written before the pause, which keeps that short). Without it one bucket
    exists at a time, and an engine that dies serves again after the next publication.
    """

    def __init__(
        self,
        pool: EnginePool,
        *,
        backend: str = "auto",
        timeout: float = 300.0,
        keep_snapshot: bool = True,
        bucket_bytes: int = BUCKET_BYTES,
        files: WeightFiles | None = None,
    ) -> None:
        if backend not in ("auto", "shm"):
            raise ConfigError([Violation("rollout.weight_sync.backend", backend, "is not known", "Use auto or shm")])
        self.pool, self.timeout, self.keep_snapshot, self.bucket_bytes = pool, timeout, keep_snapshot, bucket_bytes
        self._files = files or WeightFiles()
        self._snapshot: Snapshot | None = None
        self._version: int | None = None
        self._lock = asyncio.Lock()
        pool.replay = self._replay

    async def publish(
        self, version: int, tensors: Iterable[tuple[str, Tensor]], *, mode: PauseMode = "wait"
    ) -> SyncReport:
        """Serve ``tensors`` (full, under Hugging Face names) as ``version`` in every engine.

        ``mode``: ``wait`` lets running requests end on the old weights, ``keep`` freezes them and goes on with the new
        ones, ``abort`` ends them. Raises InfrastructureFault or DeadlineExceeded naming the engine and the step.
        """
        async with self._lock:
            round_ = _Round(self, version, mode)
            return await round_.run(tensors)

    async def close(self) -> None:
        """Remove the weight files."""
        self._snapshot = None
        self._files.close()

    async def _replay(self, member: EngineMember) -> bool:
        """Bring the current weights into a server that has just started; False when none were kept."""
        if self._version is None:
            return True  # it was started from the current weights
        if self._snapshot is None:
            return False
        await load_files(member, self._snapshot.version, self._snapshot.files)
        log.info("engine took up current weights", engine=member.name, version=self._snapshot.version)
        return True


class _Round:
    """One publication."""

    def __init__(self, owner: WeightPublisher, version: int, mode: PauseMode) -> None:
        self.owner, self.pool, self.version, self.mode = owner, owner.pool, version, mode
        self.ends = time.monotonic() + owner.timeout
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes = 0
        self.failed: list[EngineMember] = []

    async def run(self, tensors: Iterable[tuple[str, Tensor]]) -> SyncReport:
        begin = time.monotonic()
        owner, old = self.owner, self.owner._snapshot
        written = self._written(tensors)
        kept: tuple[Path, ...] = ()
        if owner.keep_snapshot:
            kept = tuple([path async for path in written])
            owner._snapshot = Snapshot(self.version, kept)
        else:
            owner._snapshot = None
        owner._version = self.version
        members = [member for member in self.pool.members if member.ready or member.stale]
        for member in members:
            await member.lock.acquire()
        self.pool.paused = True
        try:
            await self._transfer(members, _listed(kept) if owner.keep_snapshot else written)
        finally:
            await self._each(members, "resume", lambda m: m.client.control("/resume"))
            self.pool.paused = False
            for member in members:
                member.lock.release()
            for path in old.files if old else ():
                path.unlink(missing_ok=True)
        restarted = await self._recover(members)
        self.seconds["total"] = time.monotonic() - begin
        return SyncReport(self.version, self.bytes, dict(self.seconds), restarted)

    async def _transfer(self, members: list[EngineMember], files: Any) -> None:
        await self._each(members, "pause", lambda m: m.client.control("/pause", mode=self.mode))
        await self._each(members, "load", lambda m: m.client.control("/start_weight_update"))
        async for path in files:
            body = {"update_info": {"path": str(path)}}
            await self._each(members, "load", _posting("/update_weights", body))
            if not self.owner.keep_snapshot:
                path.unlink()
        await self._each(members, "load", _posting("/finish_weight_update", {"weight_version": str(self.version)}))
        await self._each(members, "reset", reset_prefix_cache)
        for member in self._working(members):
            member.version, member.ready, member.stale = self.version, True, False
        self.pool.announce()

    async def _written(self, tensors: Iterable[tuple[str, Tensor]]) -> Any:
        groups = buckets(tensors, self.owner.bucket_bytes)
        index = 0
        while True:
            begin = time.monotonic()
            path = await asyncio.to_thread(self._write_next, groups, index)
            self.seconds["write"] += time.monotonic() - begin
            if path is None:
                return
            index += 1
            yield path

    def _write_next(self, groups: Iterator[dict[str, Tensor]], index: int) -> Path | None:
        bucket = next(groups, None)
        if bucket is None:
            return None
        self.bytes += sum(tensor.nbytes for tensor in bucket.values())
        return self.owner._files.write(f"v{self.version}-{index}", bucket)

    async def _each(
        self, members: list[EngineMember], part: str, call: Callable[[EngineMember], Coroutine[Any, Any, Any]]
    ) -> None:
        """One step in every engine that still works; the others are condemned."""
        begin = time.monotonic()
        working = self._working(members)
        left = max(0.1, self.ends - begin)
        steps = [self.pool.within(m, call(m), left, f"publishing weights ({part})") for m in working]
        results = await asyncio.gather(*steps, return_exceptions=True)
        self.seconds[part] += time.monotonic() - begin
        for member, result in zip(working, results, strict=True):
            if isinstance(result, InfrastructureFault | EngineRejected):
                self.failed.append(member)
                member.condemn(f"{part}: {result}")
                if member.server is None:
                    raise InfrastructureFault("engine", "weight sync", f"{member.name}, {part}: {result}") from result
            elif isinstance(result, BaseException):
                raise result

    def _working(self, members: list[EngineMember]) -> list[EngineMember]:
        return [member for member in members if member not in self.failed]

    async def _recover(self, members: list[EngineMember]) -> tuple[str, ...]:
        """Wait for engines that restart: with kept files they come back at this version."""
        late = [m for m in self.pool.members if m not in members or m in self.failed]
        if not (late and self.owner.keep_snapshot):
            if self.failed and not self._working(members):
                raise InfrastructureFault("engine", "weight sync", f"no engine took version {self.version}")
            return ()
        names = tuple(member.name for member in late)
        doing = f"restarting {', '.join(names)} with weights of version {self.version}"
        limit = self.pool.settings.start_timeout_s
        await self.pool.wait_until(lambda: all(m.ready and m.version == self.version for m in late), limit, doing)
        return names


async def load_files(member: EngineMember, version: int, files: Iterable[Path]) -> None:
    """Load files into a server that serves nobody yet."""
    client = member.client
    await client.control("/start_weight_update")
    for path in files:
        await client.control("/update_weights", {"update_info": {"path": str(path)}})
    await client.control("/finish_weight_update", {"weight_version": str(version)})
    await reset_prefix_cache(member)
    member.version = version


async def reset_prefix_cache(member: EngineMember) -> None:
    """Drop cached keys and values; running requests recompute theirs. Stale ones give wrong log-probs.

    Raises InfrastructureFault when the engine says it could not.
    """
    answer = await member.client.control("/reset_prefix_cache", reset_running_requests="true")
    if not answer.get("success"):
        raise InfrastructureFault("engine", "prefix cache", f"{member.name} could not reset its prefix cache")


def _posting(path: str, body: dict[str, Any]) -> Callable[[EngineMember], Coroutine[Any, Any, Any]]:
    return lambda member: member.client.control(path, body)


async def _listed(paths: Iterable[Path]) -> Any:
    for path in paths:
        yield path
