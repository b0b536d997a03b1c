"""Weights to SGLang without a common file system: tensors over HTTP, or a broadcast in a group of processes.

Its third way, files, is `transports.FileTransport` (SGLang's ``/update_weights_from_disk``). All of them give SGLang
full tensors under Hugging Face names, between the two calls that begin and end an update.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.launch.net import free_port
from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.engine.member import EngineMember

from .delivery import Delivery
from .on_device import CPU, in_thread
from .wire import Bucket

GROUP_SECONDS = 120.0


class TensorTransport:
    """Each bucket in the body of a request."""

    on_cpu = True

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Requests need no agreement."""

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        with delivery.part("write"):
            packed = await asyncio.to_thread(serialized, bucket)
        body = {"serialized_named_tensors": [packed], "flush_cache": True}
        await delivery.deliver(lambda client: client.control("/update_weights_from_tensor", body))


def serialized(bucket: Bucket) -> str:
    """The tensors as SGLang reads them: base64 of a pickled list of (name, tensor).

    The plain pickler copies the values. PyTorch's own one would hand over file descriptors, which ends a server that is
    not a child of this process.
    """
    return base64.b64encode(pickle.dumps(list(bucket.items()))).decode()


class GroupTransport:
    """A broadcast over TCP (gloo) from this process, rank 0 of a group, to the workers of all engines."""

    on_cpu = True

    def __init__(self) -> None:
        self._group: Any = None
        self._name = ""
        self._joined: tuple[tuple[str, int], ...] = ()

    async def prepare(self, members: Sequence[EngineMember]) -> None:
        """Join one group, again whenever an engine has restarted or left, or a broadcast failed."""
        joined = tuple((member.name, member.restarts) for member in members)
        if joined == self._joined and self._group is not None:
            return
        await self._leave(members)
        sizes = await asyncio.gather(*(member.client.world_size() for member in members))
        port, world, name = free_port("127.0.0.1"), 1 + sum(sizes), f"weights-{secrets.token_hex(4)}"
        handshakes, rank = [], 1
        for member, size in zip(members, sizes, strict=True):
            body = {
                "master_address": "127.0.0.1",
                "master_port": port,
                "rank_offset": rank,
                "world_size": world,
                "group_name": name,
                "backend": "gloo",
            }
            handshakes.append(member.client.control("/init_weights_update_group", body))
            rank += size
        # Both sides block in the rendezvous until all have joined.
        self._group, *_ = await asyncio.gather(in_thread(CPU, _join, port, world, name), *handshakes)
        self._name, self._joined = name, joined

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        body = {
            "names": list(bucket),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in bucket.values()],
            "shapes": [list(tensor.shape) for tensor in bucket.values()],
            "group_name": self._name,
            "flush_cache": True,
        }
        # The engines receive within the request, and wait for the broadcast there: both must run simultaneously.
        try:
            await asyncio.gather(
                delivery.deliver(lambda client: client.control("/update_weights_from_distributed", body)),
                in_thread(CPU, _broadcast, self._group, bucket),
            )
        except BaseException as error:
            self._joined = ()  # an interrupted broadcast leaves the group unusable
            if isinstance(error, RuntimeError):  # what gloo raises when a connection breaks
                raise InfrastructureFault("engine", "weight sync", f"the broadcast broke off: {error}") from error
            raise

    async def _leave(self, members: Sequence[EngineMember]) -> None:
        if self._group is None:
            return
        self._group, self._joined = None, ()
        for member in members:
            with suppress(EngineRejected):  # it has restarted since, and knows no such group
                await member.client.control("/destroy_weights_update_group", {"group_name": self._name})


def _join(port: int, world: int, name: str) -> Any:
    """The group that SGLang's workers join, without making it the trainer's own default group."""
    from torch.distributed import PrefixStore, TCPStore
    from torch.distributed.distributed_c10d import GroupName, _new_process_group_helper

    limit = timedelta(seconds=GROUP_SECONDS)
    store = TCPStore("127.0.0.1", port, world, is_master=True, timeout=limit, wait_for_workers=False)
    group, _ = _new_process_group_helper(
        world, 0, [], "gloo", PrefixStore(name, store), group_name=GroupName(name), timeout=limit
    )
    return group


def _broadcast(group: Any, bucket: Bucket) -> None:
    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    for tensor in bucket.values():
        group.broadcast([tensor], options).wait()
