"""The choice of a weight transport for each placement of trainer and engines, and the devices of its threads.

The CUDA transports themselves need a GPU; here ``fake_cuda`` replaces CUDA, with a current device for each thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tau2_lightning.errors import ConfigError
from tau2_lightning.rollout.engine.fleet import Fleet
from tau2_lightning.rollout.engine.place import EnginePlace
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights import transports
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.on_device import CPU, in_thread
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.transports import FileTransport, NcclTransport, capable_transport, choose_transport

from . import fake_cuda


def gpu(index: int) -> torch.device:
    return torch.device("cuda", index)


def engines(count: int, of: int = 1, *, first: int = 0, agent: str = "") -> EngineSettings:
    """``count`` engines of ``of`` GPUs each, on consecutive GPUs from ``first``, as ``rollout.engines`` places them."""
    starts = range(first, first + count * of, of)
    places = tuple(EnginePlace(devices=tuple(range(start, start + of)), agent=agent) for start in starts)
    return EngineSettings(model_path="m", tensor_parallel=of, data_parallel=count, places=places)


def test_cpu_takes_files(tmp_path):
    pool = Fleet(EngineSettings(model_path="m", device="cpu"))
    assert isinstance(choose_transport("auto", pool, WeightFiles(tmp_path, tmp_path), CPU), FileTransport)
    assert capable_transport(EngineSettings(urls=("http://127.0.0.1:1", "http://localhost:2")), CPU) == "shm"


@pytest.mark.parametrize("name", ["nccl", "ipc"])
@pytest.mark.parametrize(("device", "engine"), [(CPU, "auto"), (gpu(0), "cpu")], ids=["trainer", "engine"])
def test_cuda_transports_are_refused_where_one_side_has_no_gpu(name, device, engine, tmp_path):
    pool = Fleet(EngineSettings(model_path="m", device=engine))
    with pytest.raises(ConfigError, match="needs CUDA"):
        choose_transport(name, pool, WeightFiles(tmp_path, tmp_path), device)


@pytest.mark.parametrize(
    ("settings", "trainer", "expected"),
    [
        pytest.param(EngineSettings(model_path="m"), 0, "ipc", id="one GPU for both"),
        pytest.param(EngineSettings(model_path="m", tensor_parallel=2), 0, "shm", id="an engine over two GPUs"),
        pytest.param(EngineSettings(urls=("http://node7:8000",)), 0, "http", id="an engine elsewhere"),
        pytest.param(engines(4), 4, "nccl", id="vllm:d4+archon:d4"),
        pytest.param(engines(1), 1, "nccl", id="vllm:d1+archon:d1 on two GPUs"),
        pytest.param(engines(2, of=2), 4, "nccl", id="vllm:d2t2+archon:d4"),
        pytest.param(engines(4), 0, "shm", id="vllm:d4 and archon:d4 on the same GPUs"),
        pytest.param(engines(1, first=3), 3, "ipc", id="one engine on the trainer's GPU 3"),
        pytest.param(engines(1, agent="10.0.0.2:9000"), 0, "nccl", id="GPU 0 of another node"),
    ],
)
def test_each_placement_gets_its_fastest_transport(monkeypatch, settings, trainer, expected):
    """The current device of the choosing thread is 0, as in the thread of the rollouts."""
    fake_cuda.install(monkeypatch)
    assert fake_cuda.current_device() == 0
    assert capable_transport(settings, gpu(trainer)) == expected


def test_ipc_is_refused_where_it_cannot_reach(tmp_path, monkeypatch):
    fake_cuda.install(monkeypatch)
    pool = Fleet(EngineSettings(model_path="m", tensor_parallel=2))
    with pytest.raises(ConfigError, match="one launched engine"):
        choose_transport("ipc", pool, WeightFiles(tmp_path, tmp_path), gpu(0))


async def test_a_worker_thread_is_given_the_device(monkeypatch):
    fake_cuda.install(monkeypatch)
    assert await in_thread(gpu(4), fake_cuda.current_device) == 4
    assert await asyncio.to_thread(fake_cuda.current_device) == 0, "control: a thread must start on device 0"


class Round:
    """The parts of `SyncRound` that loading uses, without servers."""

    members: tuple[Any, ...] = ()
    version, bytes, whole_bytes = 1, 0, 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        yield

    async def deliver(self, call: Any) -> None: ...


async def test_gathering_and_ipc_handles_use_the_trainers_device(monkeypatch, tmp_path):
    fake_cuda.install(monkeypatch)
    devices: dict[str, int] = {}

    def share(bucket: Any) -> list[Any]:
        devices["share"] = fake_cuda.current_device()
        return []

    def buckets() -> Iterator[list[tuple[str, torch.Tensor]]]:
        devices["gather"] = fake_cuda.current_device()
        yield [("w", torch.ones(2))]

    monkeypatch.setattr(transports, "share", share)
    files = WeightFiles(tmp_path, tmp_path)
    publisher = WeightPublisher(Fleet(engines(1, first=3)), device=gpu(3), files=files, keep_snapshot=False)
    sync: Any = Round()
    await publisher._load(sync, None, publisher._incoming(sync, buckets()))
    assert devices == {"gather": 3, "share": 3}


async def test_nccl_joins_and_broadcasts_from_the_trainers_device(monkeypatch):
    fake_cuda.install(monkeypatch)
    devices: list[int] = []

    def joined(*_: Any) -> SimpleNamespace:
        devices.append(fake_cuda.current_device())
        return SimpleNamespace()

    class Client:
        async def world_size(self) -> int:
            return 1

        async def control(self, path: str, body: Any = None) -> None: ...

    monkeypatch.setattr(transports, "_join", joined)
    monkeypatch.setattr(transports, "_broadcast", joined)
    transport = NcclTransport(engines(1), gpu(5))
    member: Any = SimpleNamespace(name="engine 0", restarts=0, client=Client())
    await transport.prepare([member])
    delivery: Any = Round()
    await transport.send("v1-0", {"w": torch.ones(2)}, delivery)
    assert devices == [5, 5]
