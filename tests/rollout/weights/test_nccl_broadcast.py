"""The NCCL transport between two real processes, with gloo in the place of NCCL: the tensors arrive bit for bit.

The handshake, the packing and the engine's receiver are the real ones, vLLM's among them. CUDA's streams are faked.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from aiohttp import web

from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights import transports
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.rollout.engine.fake_vllm import FakeVLLM
from tests.rollout.weights import fake_cuda
from tests.strategy.distributed import fork

pytest.importorskip("vllm")
# Importing vLLM takes as long as all other unit tests of the engine.
pytestmark = pytest.mark.slow

PACKED_BYTES = 5000  # so that a bucket takes several packs


class GlooGroup:
    """The part of vLLM's PyNcclCommunicator that a transfer uses."""

    def __init__(self, address: str, port: int, rank: int, world: int) -> None:
        store = dist.TCPStore(address, port, world, is_master=rank == 0, wait_for_workers=False)
        gloo: Any = dist.ProcessGroupGloo
        self._group = gloo(store, rank, world)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None: ...


def buckets(version: int) -> list[list[tuple[str, torch.Tensor]]]:
    """Float32 masters: matrices with odd numbers of elements beside vectors, special values among them."""
    torch.manual_seed(version)
    big, odd, special = torch.randn(90, 70), torch.randn(3, 5), torch.randn(4, 4)
    special[0] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40])
    return [[("odd", odd), ("norm", torch.randn(33)), ("big", big)], [("special", special), ("bias", torch.randn(1))]]


class NoStream:
    """A CUDA stream without CUDA, on which all work is already done."""

    def __init__(self, device: object = None) -> None: ...

    def synchronize(self) -> None: ...


def without_cuda() -> None:
    patch: Any = torch
    patch.cuda.Stream = NoStream
    patch.cuda.stream = lambda stream: nullcontext()
    patch.cuda.device = fake_cuda.device
    patch.accelerator.current_device_index = lambda: 0


def serve() -> dict[int, dict[str, torch.Tensor]]:
    """The engine: vLLM's receiver behind the routes of a server. Returns the weights by version."""
    from vllm.distributed.weight_transfer import nccl_engine

    from tau2_lightning.rollout.engine.in_vllm.transfer_cuda import CudaEngine

    def join(info: Any, _: object) -> GlooGroup:
        return GlooGroup(info.master_address, info.master_port, info.rank_offset, info.world_size)

    patched: Any = nccl_engine
    patched.worker_init_process_group = join
    received: dict[int, dict[str, torch.Tensor]] = {}
    loading: dict[str, torch.Tensor] = {}
    engine = CudaEngine.__new__(CudaEngine)
    fields: Any = engine
    fields.device, fields.parallel_config, fields.model_update_group = torch.device("cpu"), None, None
    fields.model = SimpleNamespace(load_weights=lambda pairs: loading.update({n: t.clone() for n, t in pairs}))

    async def init(request: web.Request, body: dict[str, Any]) -> None:
        await asyncio.to_thread(lambda: engine.init_transfer_engine(engine.parse_init_info(body["init_info"])))

    async def update(request: web.Request, body: dict[str, Any]) -> None:
        await asyncio.to_thread(lambda: engine.receive_weights(engine.parse_update_info(body["update_info"])))

    def finish(request: web.Request, body: dict[str, Any]) -> None:
        received[int(body["weight_version"])] = dict(loading)
        loading.clear()

    async def until_done() -> None:
        server = await FakeVLLM().start()
        server.behave = {"/init_weight_transfer_engine": init, "/update_weights": update}
        server.behave |= {"/finish_weight_update": finish}
        server.behave["/get_world_size"] = lambda request, body: web.json_response({"world_size": 1})
        dist.broadcast_object_list([server.url], 1)
        await asyncio.to_thread(dist.barrier)
        await server.stop()

    asyncio.run(until_done())
    return received


def publish(folder: Path) -> int:
    """The trainer. Returns how often the group was joined."""
    address: list[Any] = [None]
    dist.broadcast_object_list(address, 1)
    joins: list[int] = []

    def join(host: str, port: int, world: int) -> GlooGroup:
        assert fake_cuda.current_device() == 3
        joins.append(world)
        return GlooGroup(host, port, 0, world)

    patched: Any = transports
    patched._join, patched.PACKED_BYTES = join, PACKED_BYTES

    async def versions() -> None:
        settings = EngineSettings(urls=(address[0],), device="cuda", dtype="bfloat16")
        async with EnginePool(settings) as pool:
            files = WeightFiles(folder, folder)
            device = torch.device("cuda", 3)
            publisher = WeightPublisher(pool, backend="nccl", device=device, files=files, keep_snapshot=False)
            for version in (1, 2):
                await publisher.publish(version, buckets(version))

    asyncio.run(versions())
    dist.barrier()
    return len(joins)


def both(folder: Path) -> Any:
    without_cuda()
    return serve() if dist.get_rank() else publish(folder)


def test_both_processes_end_with_the_same_bits() -> None:
    with tempfile.TemporaryDirectory() as folder:
        joins, received = fork(2, functools.partial(both, Path(folder)), timeout=600)
    assert joins == 1, "the group must last from one version to the next"
    for version in (1, 2):
        sent = {name: tensor for bucket in buckets(version) for name, tensor in bucket}
        assert received[version].keys() == sent.keys()
        for name, tensor in sent.items():
            expected = tensor.to(torch.bfloat16) if tensor.ndim > 1 else tensor
            arrived = received[version][name]
            assert arrived.dtype == expected.dtype and arrived.shape == expected.shape
            assert torch.equal(arrived.view(torch.uint8), expected.contiguous().view(torch.uint8)), name
