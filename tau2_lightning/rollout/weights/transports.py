"""Ways for a bucket of weights to reach the engines: files in shared memory, CUDA IPC, an NCCL broadcast.

``shm`` works wherever trainer and engines see one file system. ``ipc`` maps the trainer's tensors and needs the engine
on the trainer's own GPU. ``nccl`` broadcasts from the trainer's GPU to engines on other GPUs, also of other nodes; it
follows vLLM 0.32's source and has not run yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch

from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation
from tau2_lightning.launch.net import free_port, own_address
from tau2_lightning.rollout.engine.in_vllm.cuda_handles import share
from tau2_lightning.rollout.engine.pool import EngineMember, EnginePool
from tau2_lightning.rollout.engine.server import EngineSettings

from .files import WeightFiles

Bucket = dict[str, torch.Tensor]
Post = Callable[[dict[str, Any]], Awaitable[None]]
PACKED_BYTES = 256 << 20
PACKED_BUFFERS = 2


class Transport(Protocol):
    """Brings buckets to engines whose update has started. ``on_cpu``: buckets are wanted as CPU tensors."""

    on_cpu: bool

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Whatever must be agreed with these engines before a publication."""

    async def send(self, name: str, bucket: Bucket, post: Post) -> None:
        """Deliver one bucket; ``post`` sends an update to every engine and returns when all have loaded it."""


class FileTransport:
    """One safetensors file at a time, removed once loaded."""

    on_cpu = True

    def __init__(self, files: WeightFiles) -> None:
        self.files = files

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Files need no agreement."""

    async def send(self, name: str, bucket: Bucket, post: Post) -> None:
        path = await asyncio.to_thread(self.files.write, name, bucket)
        try:
            await post({"path": str(path)})
        finally:
            path.unlink()


class IpcTransport:
    """The engine maps the trainer's own tensors: no copy but the engine's."""

    on_cpu = False

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Handles carry all there is to know."""

    async def send(self, name: str, bucket: Bucket, post: Post) -> None:
        handles = await asyncio.to_thread(share, bucket)
        await post({"handles": handles})  # ``bucket`` keeps the memory alive until then


class NcclTransport:
    """A broadcast from this process (NCCL rank 0) to every worker of every engine (ranks 1 ..)."""

    on_cpu = False

    def __init__(self, pool: EnginePool) -> None:
        self.pool = pool
        self._group: Any = None
        self._joined: tuple[tuple[str, int], ...] = ()

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Join one NCCL group, again whenever an engine has restarted or left."""
        joined = tuple((member.name, member.restarts) for member in members)
        if joined == self._joined and self._group is not None:
            return
        if self._group is not None:
            self._joined = ()
            await asyncio.to_thread(self._group.destroy)
            shutdown = "/shutdown_weight_transfer_engine"
            await asyncio.gather(*(member.client.control(shutdown) for member in members))
        sizes = await asyncio.gather(*(member.client.world_size() for member in members))
        address = _address(self.pool.settings)
        port, world = free_port(address), 1 + sum(sizes)
        handshakes, rank = [], 1
        for member, size in zip(members, sizes, strict=True):
            info = {
                "master_address": address,
                "master_port": port,
                "rank_offset": rank,
                "world_size": world,
                "packed": True,
                "packed_buffer_size_bytes": PACKED_BYTES,
                "packed_num_buffers": PACKED_BUFFERS,
            }
            handshakes.append(member.client.control("/init_weight_transfer_engine", {"init_info": info}))
            rank += size
        # Both sides block in the rendezvous until all have come.
        self._group, *_ = await asyncio.gather(asyncio.to_thread(_join, address, port, world), *handshakes)
        self._joined = joined

    async def send(self, name: str, bucket: Bucket, post: Post) -> None:
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in bucket.values()]
        shapes = [list(tensor.shape) for tensor in bucket.values()]
        # The engines receive inside the call that the broadcast feeds: the two must run at once.
        try:
            await asyncio.gather(
                post({"names": list(bucket), "dtype_names": dtypes, "shapes": shapes}),
                asyncio.to_thread(_broadcast, self._group, bucket),
            )
        except BaseException:
            self._joined = ()  # a broken-off broadcast leaves the group unusable
            raise


def choose_transport(name: str, pool: EnginePool, files: WeightFiles) -> Transport:
    """The transport called ``name``, or for ``auto`` the fastest these engines can take. Raises ConfigError."""
    if name == "auto":
        name = capable_transport(pool.settings)
    if name == "shm":
        return FileTransport(files)
    if name not in ("ipc", "nccl"):
        raise _refused(name, "is not known", "Use auto, shm, ipc or nccl")
    if not torch.cuda.is_available():
        raise _refused(name, "needs CUDA in the trainer and in the engines", "Use auto or shm")
    if name == "ipc":
        if pool.settings.tensor_parallel > 1 or pool.settings.data_parallel > 1 or pool.settings.urls:
            raise _refused(name, "reaches one launched engine on the trainer's own GPU", "Use auto, shm or nccl")
        return IpcTransport()
    return NcclTransport(pool)


def capable_transport(settings: EngineSettings) -> str:
    """``shm`` on CPU, ``ipc`` for one engine on the trainer's GPU, ``nccl`` for engines on GPUs of their own."""
    remote = any(urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1") for url in settings.urls)
    if remote:
        return "nccl"
    if settings.urls or settings.on_cpu or not torch.cuda.is_available():
        return "shm"
    places = [settings.place(index) for index in range(settings.data_parallel)]
    first = tuple(range(settings.tensor_parallel))
    shared = [place for place in places if not place.agent and torch.cuda.current_device() in (place.devices or first)]
    if not shared:
        return "nccl"
    return "ipc" if settings.data_parallel * settings.tensor_parallel == 1 else "shm"


def _join(address: str, port: int, world: int) -> Any:
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    return trainer_init({"master_address": address, "master_port": port, "world_size": world})


def _broadcast(group: Any, bucket: Bucket) -> None:
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    packed_nccl_broadcast_producer(
        iterator=iter(bucket.items()),
        group=group,
        src=0,
        post_iter_func=lambda item: item[1],
        buffer_size_bytes=PACKED_BYTES,
        num_buffers=PACKED_BUFFERS,
    )


def _address(settings: EngineSettings) -> str:
    """An address of this machine that the engines reach: loopback when all of them are here."""
    elsewhere = [place.host for place in settings.places if place.agent]
    if not settings.urls and not elsewhere:
        return "127.0.0.1"
    host = elsewhere[0] if elsewhere else urlsplit(settings.urls[0]).hostname or "127.0.0.1"
    try:
        return own_address(host)
    except OSError as error:
        raise InfrastructureFault("engine", "connection", f"no route to {host}: {error}") from error


def _refused(name: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Violation("rollout.weight_sync.backend", name, problem, remedy)])
