"""Weight publication: brings the trainer's weights into running engines, and into engines that restart later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tau2_lightning.rollout.engine.client import PauseMode
from tau2_lightning.rollout.engine.fleet import Fleet

from .delivery import Transport
from .expected_tensors import ExpectedTensors
from .files import WeightFiles
from .http_transport import HttpTransport
from .on_device import CPU, in_thread
from .snapshot import CurrentWeights, Snapshot
from .sync_round import SyncReport, SyncRound
from .transports import FileTransport, choose_transport
from .wire import Bucket, take, wire_dtype


class WeightPublisher:
    """Publishes weights to every engine of ``fleet``.

    The sequence is: gather and send (where files or HTTP carry the weights), pause, start, update (bucket by bucket),
    finish with the version, reset the prefix cache, resume. Each step runs in all engines simultaneously, and engines
    are resumed in every case. An engine that fails half-way must not serve: one that this program started is restarted,
    and the call waits for it; a remote one raises InfrastructureFault.

    ``backend`` is the name of a transport (see ``transports``) or ``auto``. With ``sync_mode=delta``, engines get the
    changes since the version that they hold, over HTTP. ``device`` is the trainer's device in its main thread; every
    thread that works on weights uses it. With ``keep_snapshot``, the weights also stay in files until the next
    publication, so that an engine that dies restarts with them. If files carry the weights anyway, all of them are
    written before the pause, which keeps the pause short. Without a snapshot, only one bucket exists at a time, and an
    engine that dies serves again after the next publication. By default a snapshot is kept if files carry the weights,
    or if there is only one engine.

    ``mode`` of both calls: ``wait`` lets running requests end on the old weights, ``keep`` freezes them and continues
    with the new ones, ``abort`` ends them. Both calls raise InfrastructureFault or DeadlineExceeded naming engine and
    step.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        device: torch.device = CPU,
        backend: str = "auto",
        sync_mode: str = "full",
        timeout: float = 300.0,
        keep_snapshot: bool | None = None,
        files: WeightFiles | None = None,
    ) -> None:
        self.fleet, self.timeout, self._device = fleet, timeout, device
        self._dtype = wire_dtype(fleet.settings.dtype)
        self._files = files or WeightFiles()
        self._transport = choose_transport(backend, fleet, self._files, device, sync_mode)
        self._expected = ExpectedTensors.of(fleet.settings)
        self._by_file = isinstance(self._transport, FileTransport | HttpTransport)
        # A single engine that dies would wait for a publication, and the publication for the engine's rollouts.
        self.keep_snapshot = (self._by_file or len(fleet.members) < 2) if keep_snapshot is None else keep_snapshot
        self._current = CurrentWeights()
        self._lock = asyncio.Lock()
        fleet.replay = self._current.replay

    async def publish(
        self, version: int, buckets: Iterable[list[tuple[str, Tensor]]], *, mode: PauseMode = "wait"
    ) -> SyncReport:
        """Serve the weights of ``buckets`` as ``version`` in every engine, without any adapter.

        A bucket is a list of full tensors under Hugging Face names; it reaches the engines as it is, in their dtype
        (see ``wire``). Buckets are taken one by one, each once and in order, in a worker thread. In a sharded trainer,
        taking a bucket is a collective operation. A bucket's list may be emptied once the next one is taken, so
        ``list(buckets)`` holds nothing. Raises ValueError without any tensor.
        """
        async with self._lock:
            sync = SyncRound(self.fleet, version, mode, self.timeout)
            incoming = self._incoming(sync, iter(buckets))
            previous = self._current.snapshot
            ready = await self._gathered(sync, incoming)
            self._current.replace(ready)
            try:
                sync.enlist()
                if isinstance(self._transport, HttpTransport):
                    assert ready is not None
                    await self._transport.send(sync, ready)
                else:
                    with sync.part("load"):
                        await self._transport.prepare(sync.members)
                await sync.run(lambda: self._load(sync, ready, incoming))
                return await sync.recover(self._current.replay if self.keep_snapshot else None)
            finally:
                for path in set(previous.files if previous else ()) - set(ready.files if ready else ()):
                    path.unlink(missing_ok=True)

    async def publish_adapter(self, version: int, folder: Path, *, mode: PauseMode = "wait") -> SyncReport:
        """Serve the LoRA adapter in ``folder`` (PEFT's format) on top of the current weights as ``version``.

        The folder must stay until the next publication. The engines need a ``lora_rank`` of at least the adapter's.
        """
        async with self._lock:
            sync = SyncRound(self.fleet, version, mode, self.timeout)
            sync.bytes = sync.whole_bytes = _adapter_bytes(folder)
            lost, base = self._current.lost, self._current.snapshot or Snapshot(version, ())
            self._current.replace(None if lost else replace(base, version=version, adapter=folder))
            sync.enlist()
            await sync.run(lambda: sync.each("load", "load", lambda m: m.client.load_adapter(version, folder)))
            return await sync.recover(None if lost else self._current.replay)

    async def close(self) -> None:
        """Remove the weight files."""
        self._current.snapshot = None
        self._files.close()

    async def _gathered(self, sync: SyncRound, incoming: AsyncIterator[tuple[str, Bucket]]) -> Snapshot | None:
        """All weights in files, if the files are written before the pause; else None."""
        if isinstance(self._transport, HttpTransport):
            if self._transport.in_place:
                self._current.snapshot = None  # an engine that starts now must not read files while they change
            return await self._transport.keep(sync, incoming)
        if not (self.keep_snapshot and self._by_file):
            return None
        return Snapshot(sync.version, tuple([await self._write(sync, name, bucket) async for name, bucket in incoming]))

    async def _load(self, sync: SyncRound, ready: Snapshot | None, incoming: AsyncIterator[tuple[str, Bucket]]) -> None:
        await sync.deliver(lambda client: client.begin_update())
        if isinstance(self._transport, HttpTransport):
            await self._transport.load(sync)
        else:
            await self._stream(sync, ready, incoming, self._transport)
        await sync.deliver(lambda client: client.finish_update(sync.version))
        for member in sync.members:
            member.client.model = None

    async def _stream(
        self,
        sync: SyncRound,
        ready: Snapshot | None,
        incoming: AsyncIterator[tuple[str, Bucket]],
        transport: Transport,
    ) -> None:
        """Load the files of ``ready``, or else each bucket as it comes, which is kept if ``keep_snapshot`` is set."""
        if ready:
            await sync.deliver(lambda client: client.load_files(ready.files))
        kept: list[Path] = []
        async for name, bucket in incoming:  # empty if all files were written before
            await transport.send(name, bucket, sync)
            if self.keep_snapshot:
                kept.append(await self._write(sync, f"{name}-kept", bucket))
            bucket.clear()  # before the next one is gathered: two would not fit beside a large model
        if kept:
            self._current.snapshot = Snapshot(sync.version, tuple(kept))

    async def _write(self, sync: SyncRound, name: str, bucket: Bucket) -> Path:
        with sync.part("write"):
            return await in_thread(self._device, self._files.write, name, bucket)

    async def _incoming(
        self, sync: SyncRound, buckets: Iterator[list[tuple[str, Tensor]]]
    ) -> AsyncIterator[tuple[str, Bucket]]:
        """The buckets, each with a name, as contiguous tensors on the device that the transport needs."""
        index = 0
        while True:
            with sync.part("gather"):
                bucket = await in_thread(self._device, take, buckets, self._dtype, on_cpu=self._transport.on_cpu)
            if bucket is None:
                if not sync.whole_bytes:  # the engines would keep what they have, under the new number
                    raise ValueError(f"no tensor was published as version {sync.version}: all buckets were empty")
                return
            if self._expected:
                self._expected.check(bucket)
            size = sum(tensor.nbytes for tensor in bucket.values())
            sync.whole_bytes += size
            if not isinstance(self._transport, HttpTransport):  # this one counts the bytes that it sends
                sync.bytes += size
            yield f"v{sync.version}-{index}", bucket
            index += 1


def _adapter_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("adapter_model*"))
