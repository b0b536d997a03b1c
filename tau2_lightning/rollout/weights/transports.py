"""Weight transports: weights reach the engines by files in shared memory, CUDA IPC, an NCCL broadcast or HTTP.

``shm`` works wherever trainer and engines see one file system. ``ipc`` maps the trainer's tensors and needs the engine
on the trainer's own GPU. ``nccl`` broadcasts from the trainer's GPU to engines on other GPUs, also on other nodes; it
follows vLLM 0.32's source and has not run on GPUs yet. ``http`` (see `http_transport`) needs only the engine's port.
SGLang takes ``shm``, ``http`` and ``gloo`` in its own forms (see `sglang_transports`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch

from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation
from tau2_lightning.launch.net import free_port, own_address
from tau2_lightning.rollout.engine.client import EngineClient
from tau2_lightning.rollout.engine.fleet import Fleet
from tau2_lightning.rollout.engine.in_vllm.cuda_handles import share
from tau2_lightning.rollout.engine.member import EngineMember
from tau2_lightning.rollout.engine.names import SGLANG
from tau2_lightning.rollout.engine.settings import EngineSettings

from .delivery import Delivery, Transport
from .files import WeightFiles
from .http_transport import HttpTransport
from .on_device import in_thread
from .sglang_transports import GroupTransport, TensorTransport
from .wire import Bucket

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PACKED_BYTES = 256 << 20
PACKED_BUFFERS = 2


class FileTransport:
    """One safetensors file at a time, removed once loaded."""

    on_cpu = True

    def __init__(self, files: WeightFiles) -> None:
        self.files = files

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Files need no agreement."""

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        with delivery.part("write"):
            path = await asyncio.to_thread(self.files.write, name, bucket)
        try:
            await delivery.deliver(lambda client: client.load_files([path]))
        finally:
            path.unlink()


class IpcTransport:
    """The engine maps the trainer's own tensors, so the only copy is the engine's."""

    on_cpu = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Nothing to do: engines open these handles without an agreement beforehand."""

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        handles = await in_thread(self._device, share, bucket)
        await delivery.deliver(_update({"handles": handles}))  # ``bucket`` keeps the memory alive until then


class NcclTransport:
    """A broadcast from ``device`` of this process (NCCL rank 0) to every worker of every engine (ranks 1, 2, ...)."""

    on_cpu = False

    def __init__(self, settings: EngineSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._group: Any = None
        self._joined: tuple[tuple[str, int], ...] = ()

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Join one NCCL group, again whenever an engine has restarted or left."""
        joined = tuple((member.name, member.restarts) for member in members)
        if joined == self._joined and self._group is not None:
            return
        if self._group is not None:
            self._joined = ()
            await in_thread(self._device, self._group.destroy)
            shutdown = "/shutdown_weight_transfer_engine"
            await asyncio.gather(*(member.client.control(shutdown) for member in members))
        sizes = await asyncio.gather(*(member.client.world_size() for member in members))
        address = _address(self._settings)
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
        # Both sides block in the rendezvous until all have joined.
        self._group, *_ = await asyncio.gather(in_thread(self._device, _join, address, port, world), *handshakes)
        self._joined = joined

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        # vLLM lays the tensors side by side in one buffer of bytes: a float32 tensor behind an odd number of bfloat16
        # values could not be viewed there.
        bucket = dict(sorted(bucket.items(), key=lambda item: -item[1].itemsize))
        dtypes = [str(tensor.dtype).removeprefix("torch.") for tensor in bucket.values()]
        shapes = [list(tensor.shape) for tensor in bucket.values()]
        # The engines receive within the request, and wait for the broadcast there: both must run simultaneously.
        try:
            await asyncio.gather(
                delivery.deliver(_update({"names": list(bucket), "dtype_names": dtypes, "shapes": shapes})),
                in_thread(self._device, _broadcast, self._group, bucket),
            )
        except BaseException:
            self._joined = ()  # an interrupted broadcast leaves the group unusable
            raise


def choose_transport(
    name: str, fleet: Fleet, files: WeightFiles, device: torch.device, sync_mode: str = "full"
) -> Transport | HttpTransport:
    """The transport called ``name``, or for ``auto`` the fastest that these engines can take from the trainer's
    ``device``. Changes (``sync_mode=delta``) travel by HTTP only. Raises ConfigError.
    """
    settings = fleet.settings
    if settings.backend == SGLANG:
        return _for_sglang(name, settings, files, sync_mode)
    if name == "auto":
        name = "http" if sync_mode == "delta" else capable_transport(settings, device)
    if name == "http":
        return HttpTransport(files, device, delta=sync_mode == "delta")
    if sync_mode == "delta":
        raise _refused(
            name, "sends all weights, and rollout.weight_sync.mode is delta", "Use auto or http, or mode=full"
        )
    if name == "shm":
        return FileTransport(files)
    if name == "gloo":
        raise _refused(name, "is a group that SGLang joins, and the engine is vLLM", "Use auto, shm, ipc, nccl or http")
    if name not in ("ipc", "nccl"):
        raise _refused(name, "is not known", "Use auto, shm, ipc, nccl, http or gloo")
    if device.type != "cuda" or settings.on_cpu:
        raise _refused(name, "needs CUDA in the trainer and in the engines", "Use auto, shm or http")
    if name == "ipc":
        if settings.tensor_parallel > 1 or settings.data_parallel > 1 or settings.urls:
            raise _refused(name, "reaches one launched engine on the trainer's own GPU", "Use auto, shm, nccl or http")
        return IpcTransport(device)
    return NcclTransport(settings, device)


def _for_sglang(name: str, settings: EngineSettings, files: WeightFiles, sync_mode: str) -> Transport:
    """As `choose_transport`, for SGLang, which has no extension of ours inside."""
    if sync_mode == "delta":
        raise _refused(name, "sends all weights to SGLang", "Use rollout.weight_sync.mode=full")
    if name == "auto":
        name = "http" if elsewhere(settings) else "shm"
    if name == "shm":
        return FileTransport(files)
    if name in ("http", "gloo") and settings.tensor_parallel > 1:
        raise _refused(name, "is tested with SGLang servers of one device only", "Use auto or shm")
    if name == "http":
        return TensorTransport()
    if name == "gloo" and settings.on_cpu and not settings.urls:
        return GroupTransport()
    if name == "gloo":
        raise _refused(name, "reaches SGLang servers that the run starts on CPUs", "Use auto, shm or http")
    raise _refused(name, "is not tested with SGLang", "Use auto, shm or http; gloo on CPUs")


def elsewhere(settings: EngineSettings) -> bool:
    """Whether the URL of a running engine names another machine."""
    return any(urlsplit(url).hostname not in LOOPBACK for url in settings.urls)


def capable_transport(settings: EngineSettings, device: torch.device) -> str:
    """``shm`` on CPU, ``ipc`` for one engine on the trainer's GPU, ``nccl`` for launched engines on GPUs of their own,
    ``http`` for running engines on another machine.

    ``device`` is the trainer's, with its index among the GPUs of its node. It is not known whether a machine behind a
    URL sees a folder of the trainer's, nor whether NCCL reaches it.
    """
    if elsewhere(settings):
        return "http"
    if settings.urls or settings.on_cpu or device.type != "cuda":
        return "shm"
    places = [settings.place(index) for index in range(settings.data_parallel)]
    first = tuple(range(settings.tensor_parallel))
    shared = [place for place in places if not place.agent and device.index in (place.devices or first)]
    if not shared:
        return "nccl"
    return "ipc" if settings.data_parallel * settings.tensor_parallel == 1 else "shm"


def _update(info: dict[str, Any]) -> Callable[[EngineClient], Coroutine[Any, Any, Any]]:
    """The call that gives ``info`` to this project's weight transfer inside vLLM."""
    return lambda client: client.control("/update_weights", {"update_info": info})


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
    """An address of this machine that the engines can reach: loopback when all of them run here."""
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
