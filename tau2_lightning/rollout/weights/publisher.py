"""Brings the trainer's weights into every engine without a restart, and into those that restart later."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.client import EngineRejected
from tau2_lightning.rollout.engine.pool import EngineMember, EnginePool, PauseMode

from .files import WeightFiles, buckets
from .transports import FileTransport, choose_transport

log = structlog.get_logger(__name__)

BUCKET_BYTES = 1 << 30
RESUME_SECONDS = 30.0
Named = tuple[str, dict[str, Tensor]]


@dataclass(frozen=True)
class SyncReport:
    """What one publication cost. ``seconds`` by part: ``gather`` (the trainer giving its tensors), ``write`` (files),
    ``pause``, ``load``, ``reset``, ``resume``, ``total``.

    ``bytes`` is the payload's size; ``restarted`` names engines that failed on the way and came back with the weights.
    """

    version: int
    bytes: int
    seconds: dict[str, float]
    restarted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """What is being served, kept for engines that restart: files of the weights, then an adapter's folder on top."""

    version: int
    files: tuple[Path, ...]
    adapter: Path | None = None


class WeightPublisher:
    """Publishes weights to every engine of ``pool``.

    The sequence is pause, start, update (bucket by bucket), finish with the version, reset the prefix cache, resume;
    each step runs in all engines at once, and engines are resumed whatever happens. An engine that fails half-way must
    not serve: a launched one is restarted, and the call waits for it; a remote one raises InfrastructureFault.

    ``backend`` is a transport's name (see ``engine_transports``) or ``auto``. With ``keep_snapshot`` the weights also
    stay in files until the next publication, so that an engine that dies restarts at once with them; where files carry
    the weights anyway, all are written before the pause, which keeps that short. Without it one bucket of
    ``bucket_bytes`` exists at a time, and an engine that dies serves again after the next publication. None keeps
    files where they carry the weights anyway, or where there is only one engine.

    ``mode`` of both calls: ``wait`` lets running requests end on the old weights, ``keep`` freezes them and goes on
    with the new ones, ``abort`` ends them. Both raise InfrastructureFault or DeadlineExceeded naming engine and step.
    """

    def __init__(
        self,
        pool: EnginePool,
        *,
        backend: str = "auto",
        timeout: float = 300.0,
        keep_snapshot: bool | None = None,
        bucket_bytes: int = BUCKET_BYTES,
        files: WeightFiles | None = None,
    ) -> None:
        self._files = files or WeightFiles()
        self._transport = choose_transport(backend, pool, self._files)
        self._by_file = isinstance(self._transport, FileTransport)
        # An only engine that dies must not wait for a publication that waits for its rollouts.
        self.keep_snapshot = (self._by_file or len(pool.members) < 2) if keep_snapshot is None else keep_snapshot
        self.pool, self.timeout, self.bucket_bytes = pool, timeout, bucket_bytes
        self._snapshot: Snapshot | None = None
        self._published = False
        self._lock = asyncio.Lock()
        pool.replay = self._replay

    async def publish(
        self, version: int, tensors: Iterable[tuple[str, Tensor]], *, mode: PauseMode = "wait"
    ) -> SyncReport:
        """Serve ``tensors`` (full, under Hugging Face names) as ``version`` in every engine, without any adapter."""
        async with self._lock:
            round_ = _Round(self.pool, version, mode, self.timeout)
            old, ready = self._snapshot, None
            groups = self._buckets(round_, tensors)
            if self.keep_snapshot and self._by_file:
                ready = [await self._write(round_, name, bucket) async for name, bucket in groups]
            self._snapshot, self._published = Snapshot(version, tuple(ready)) if ready else None, True
            try:
                round_.gather()
                await self._transport.prepare(round_.members)
                await round_.run(lambda members: self._load(round_, members, ready, groups))
                return await round_.recover(self._replay if self.keep_snapshot else None)
            finally:
                for path in old.files if old else ():
                    path.unlink(missing_ok=True)

    async def publish_adapter(self, version: int, folder: Path, *, mode: PauseMode = "wait") -> SyncReport:
        """Serve the LoRA adapter in ``folder`` (PEFT's format) on top of the current weights as ``version``.

        The folder must stay until the next publication. The engines need ``lora_rank`` of at least the adapter's.
        """
        async with self._lock:
            round_ = _Round(self.pool, version, mode, self.timeout)
            round_.bytes = _adapter_bytes(folder)
            base = self._snapshot.files if self._snapshot else ()
            lost = self._published and self._snapshot is None
            self._snapshot, self._published = None if lost else Snapshot(version, base, folder), True

            async def load(members: list[EngineMember]) -> None:
                await round_.each(members, "load", lambda member: load_adapter(member, version, folder))

            round_.gather()
            await round_.run(load)
            return await round_.recover(None if lost else self._replay)

    async def close(self) -> None:
        """Remove the weight files."""
        self._snapshot = None
        self._files.close()

    async def _load(
        self, round_: _Round, members: list[EngineMember], ready: list[Path] | None, groups: AsyncIterator[Named]
    ) -> None:
        async def post(update: dict[str, Any]) -> None:
            await round_.each(members, "load", _posting("/update_weights", {"update_info": update}))

        await round_.each(members, "load", lambda member: member.client.control("/start_weight_update"))
        for path in ready or ():
            await post({"path": str(path)})
        kept: list[Path] = []
        async for name, bucket in groups:  # exhausted already if everything was written before
            await self._transport.send(name, bucket, post)
            if self.keep_snapshot:
                kept.append(await self._write(round_, f"{name}-kept", {k: t.cpu() for k, t in bucket.items()}))
        await round_.each(members, "load", _posting("/finish_weight_update", {"weight_version": str(round_.version)}))
        for member in members:
            member.client.model = None
        if kept:
            self._snapshot = Snapshot(round_.version, tuple(kept))

    async def _write(self, round_: _Round, name: str, bucket: dict[str, Tensor]) -> Path:
        begin = time.monotonic()
        path = await asyncio.to_thread(self._files.write, name, bucket)
        round_.seconds["write"] += time.monotonic() - begin
        return path

    async def _buckets(self, round_: _Round, tensors: Iterable[tuple[str, Tensor]]) -> AsyncIterator[Named]:
        groups, index = buckets(tensors, self.bucket_bytes, on_cpu=self._transport.on_cpu), 0
        while True:
            begin = time.monotonic()
            bucket = await asyncio.to_thread(next, groups, None)
            round_.seconds["gather"] += time.monotonic() - begin
            if bucket is None:
                return
            round_.bytes += sum(tensor.nbytes for tensor in bucket.values())
            yield f"v{round_.version}-{index}", bucket
            index += 1

    async def _replay(self, member: EngineMember) -> bool:
        """Bring the current weights into a server that has just started, or has come back; False when none were kept.

        Under the member's lock. A remote one may still be at work for those who asked before it was lost sight of: it
        is paused meanwhile.
        """
        while True:
            member.client.model = member.client.adapter = None
            if not self._published:
                return True  # it was started from the current weights
            if (kept := self._snapshot) is None:
                return False
            try:
                await (_take_up(member, kept) if member.server else _paused(member, _take_up(member, kept)))
            except (InfrastructureFault, EngineRejected):
                if self._snapshot is kept:
                    raise
            if self._snapshot is kept:  # else a publication began meanwhile, and the files were those of the last one
                break
        member.version = kept.version
        log.info("engine took up current weights", engine=member.name, version=kept.version)
        return True


class _Round:
    """One publication: the same steps in every engine that still works.

    A server that is restarted on the way is another one: it takes up the weights as it comes up, and no step is for it.
    """

    def __init__(self, pool: EnginePool, version: int, mode: PauseMode, timeout: float) -> None:
        self.pool, self.version, self.mode = pool, version, mode
        self.begin = time.monotonic()
        self.ends = self.begin + timeout
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes = 0
        self.members: list[EngineMember] = []
        self.failed: list[EngineMember] = []
        self._lives: dict[str, int] = {}

    def gather(self) -> None:
        """Take in the engines that answer now; others will find what has been kept for them when they come up."""
        self.members = [member for member in self.pool.members if member.ready or member.stale]
        self._lives = {member.name: member.restarts for member in self.members}

    def _fail(self, member: EngineMember, why: str) -> None:
        self.failed.append(member)
        if member.restarts == self._lives[member.name]:  # else what failed is gone, and its successor has done nothing
            member.condemn(why)

    async def run(self, load: Callable[[list[EngineMember]], Awaitable[None]]) -> None:
        """Pause, ``load``, reset the prefix cache, resume."""
        for member in self.members:
            await member.lock.acquire()
        self.pool.paused = True
        try:
            await self.each(self.members, "pause", lambda member: member.client.control("/pause", mode=self.mode))
            await load(self.members)
            await self.each(self.members, "reset", reset_prefix_cache)
        except BaseException:
            # Whatever each engine holds now, half of it may be new. Those still alive are resumed all the same.
            for member in self.working():
                self._fail(member, f"publishing version {self.version} broke off")
            self.failed = list(self.members)
            raise
        finally:
            await self._resume()
            self.pool.paused = False
            for member in self.members:
                member.lock.release()
        for member in self.working():
            member.version, member.ready, member.stale = self.version, True, False
        self.pool.announce()

    async def each(
        self, members: list[EngineMember], part: str, call: Callable[[EngineMember], Coroutine[Any, Any, Any]]
    ) -> None:
        """Take one step in every engine that still works; those that fail it are condemned."""
        begin = time.monotonic()
        working = [member for member in members if member not in self.failed]
        left = max(0.1, self.ends - begin)
        steps = [self.pool.within(m, call(m), left, f"publishing weights ({part})") for m in working]
        results = await asyncio.gather(*steps, return_exceptions=True)
        self.seconds[part] += time.monotonic() - begin
        for member, result in zip(working, results, strict=True):
            if isinstance(result, InfrastructureFault | EngineRejected):
                self._fail(member, f"{part}: {result}")
                if member.server is None:
                    raise InfrastructureFault("engine", "weight sync", f"{member.name}, {part}: {result}") from result
            elif isinstance(result, BaseException):
                raise result

    async def _resume(self) -> None:
        begin = time.monotonic()
        alive = [member for member in self.members if member.server is None or member.server.alive]
        steps = [self.pool.within(m, m.client.control("/resume"), RESUME_SECONDS, "resuming") for m in alive]
        for member, result in zip(alive, await asyncio.gather(*steps, return_exceptions=True), strict=True):
            if isinstance(result, Exception) and member not in self.failed:
                self._fail(member, f"resume: {result}")
        self.seconds["resume"] += time.monotonic() - begin

    def working(self) -> list[EngineMember]:
        """Engines that have taken every step so far."""
        return [m for m in self.members if m not in self.failed and m.restarts == self._lives[m.name]]

    async def recover(self, replay: Callable[[EngineMember], Coroutine[Any, Any, bool]] | None) -> SyncReport:
        """Wait for engines that restart: with ``replay``, which brings what was kept into one, they serve this version.

        One may have come up while there was nothing to take up yet.
        """
        late = [m for m in self.pool.members if m not in self.working()]
        if not self.working() and not (late and replay):
            raise InfrastructureFault("engine", "weight sync", f"no engine took version {self.version}")
        if late and replay:
            doing = f"restarting {', '.join(m.name for m in late)} with weights of version {self.version}"
            limit = self.pool.settings.start_timeout_s
            await self.pool.wait_until(lambda: all(m.ready or m.stale for m in late), limit, doing)
            for member in late:
                async with member.lock:
                    if member.version != self.version:
                        member.ready = await self.pool.within(member, replay(member), limit, doing)
                        member.stale = not member.ready
            self.pool.announce()
        self.seconds["total"] = time.monotonic() - self.begin
        return SyncReport(self.version, self.bytes, dict(self.seconds), tuple(m.name for m in late))


async def _take_up(member: EngineMember, kept: Snapshot) -> None:
    if kept.files:
        await load_files(member, kept.version, kept.files)
    if kept.adapter:
        await load_adapter(member, kept.version, kept.adapter)
    await reset_prefix_cache(member)


async def _paused(member: EngineMember, work: Coroutine[Any, Any, None]) -> None:
    """``work`` while the server does nothing else; what it was doing is ended."""
    try:
        await member.client.control("/pause", mode="abort")
        await work
    finally:
        work.close()
        await member.client.control("/resume")


async def load_files(member: EngineMember, version: int, files: Iterable[Path]) -> None:
    """Load files into a server that serves nobody meanwhile."""
    client = member.client
    await client.control("/start_weight_update")
    for path in files:
        await client.control("/update_weights", {"update_info": {"path": str(path)}})
    await client.control("/finish_weight_update", {"weight_version": str(version)})


async def load_adapter(member: EngineMember, version: int, folder: Path) -> None:
    """Load a LoRA adapter, in place of the one before, and send requests to it."""
    name, client = f"{member.client.name}-adapter".replace(" ", "-"), member.client
    body = {"lora_name": name, "lora_path": str(folder), "load_inplace": client.adapter == name}
    await client.control("/v1/load_lora_adapter", body)
    await client.control("/update_weight_version", {"new_version": str(version)})
    client.model = client.adapter = name


async def reset_prefix_cache(member: EngineMember) -> None:
    """Drop cached keys and values; running requests recompute theirs. Stale ones give wrong log-probs.

    Raises InfrastructureFault when the engine says it could not.
    """
    answer = await member.client.control("/reset_prefix_cache", reset_running_requests="true")
    if not answer.get("success"):
        raise InfrastructureFault("engine", "prefix cache", f"{member.name} could not reset its prefix cache")


def _adapter_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("adapter_model*"))


def _posting(path: str, body: dict[str, Any]) -> Callable[[EngineMember], Coroutine[Any, Any, Any]]:
    return lambda member: member.client.control(path, body)
