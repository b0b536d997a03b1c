"""Weights over plain HTTP, for engines that share neither a file system nor a GPU network with the trainer.

The trainer writes buckets to files and sends them to every engine while the engine still generates. So an engine is
paused only while it loads the weights from its own memory. With ``delta``, an engine that holds the previous version
gets only the elements whose bits have changed. It gets all weights if it holds another version (after a restart, for an
engine that joined later, after a publication that failed) or if a digest of the result differs.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import structlog
import torch

from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.engine.member import EngineMember

from .files import WeightFiles
from .on_device import in_thread
from .sent_copy import SentCopy
from .snapshot import Snapshot
from .sync_round import SyncRound
from .upload import Held, drop, held_by, upload
from .wire import Bucket

log = structlog.get_logger(__name__)


class HttpTransport:
    """Keeps the weights in files, so that a publication is gathered once, whatever the number of engines.

    With ``delta`` (``in_place``), these files and those of the engines are changed in place from one publication to the
    next. They take 2 bytes per parameter of a bfloat16 model in the memory of each machine.
    """

    on_cpu = False  # weights are compared on the trainer's device

    def __init__(self, files: WeightFiles, device: torch.device, *, delta: bool) -> None:
        self.in_place, self._device = delta, device
        self._copy = SentCopy(files)
        self._newest: Snapshot | None = None
        self._base: str | None = None  # the label of the version that the changes start from
        self._held: dict[str, Held] = {}  # for each engine, what it acknowledged last
        self._paths: dict[str, list[str]] = {}

    async def keep(self, sync: SyncRound, incoming: AsyncIterator[tuple[str, Bucket]]) -> Snapshot:
        """Update the copy to the weights of ``incoming``; with ``delta``, find what they change."""
        before, self._newest = self._newest, None  # unknown until all buckets have been taken
        self._copy.begin(in_place=self.in_place)
        async for name, bucket in incoming:
            with sync.part("write"):
                await in_thread(self._device, self._copy.take, name, bucket)
            bucket.clear()
        self._copy.end()
        # The parity guard publishes a version again when engines seem to have other weights: then send all of them.
        follows = before is not None and before.version != sync.version and self._copy.changes is not None
        self._base = before.label if before and follows else None
        label = f"{sync.version}-{secrets.token_hex(8)}"
        digests = self._copy.digests
        self._newest = Snapshot(sync.version, self._copy.paths, carrier=self, label=label, digests=digests)
        return self._newest

    async def send(self, sync: SyncRound, snapshot: Snapshot) -> None:
        """Send the weights, or their changes, to the store of every engine. Requests continue meanwhile."""

        async def send_to(member: EngineMember) -> None:
            held = await held_by(member)
            if self._base and held.version == self._base and held == self._held.get(member.name):
                try:
                    await self._upload(sync, member, snapshot, self._copy.changes or [], self._base)
                except EngineRejected as error:
                    sync.fallbacks += 1
                    log.warning("changes refused, sending all weights", engine=member.name, error=str(error)[:500])
                else:
                    return
            await self._upload(sync, member, snapshot, snapshot.files, None)

        await sync.each("send", "send", send_to)
        self._copy.forget_changes()

    async def load(self, sync: SyncRound) -> None:
        """Make the workers of every engine load the weights that its store holds now."""

        async def load_in(member: EngineMember) -> None:
            await member.client.load_files(self._paths[member.name])
            await self.loaded(member)

        await sync.each("load", "load", load_in)

    async def bring(self, member: EngineMember, snapshot: Snapshot) -> Sequence[str | Path]:
        """See `Carrier`."""
        paths = await upload(member, snapshot.files, snapshot.label, snapshot.digests)
        self._held[member.name] = await held_by(member)
        return paths

    async def loaded(self, member: EngineMember) -> None:
        """See `Carrier`. Without ``delta``, the engine does not need these files again, so their memory is freed."""
        if not self.in_place:
            await drop(member)

    async def _upload(
        self, sync: SyncRound, member: EngineMember, snapshot: Snapshot, files: Sequence[Path], base: str | None
    ) -> None:
        self._held.pop(member.name, None)
        size = sum(file.stat().st_size for file in files)
        self._paths[member.name] = await upload(member, files, snapshot.label, snapshot.digests, base=base)
        self._held[member.name] = await held_by(member)
        sync.bytes = max(sync.bytes, size)
