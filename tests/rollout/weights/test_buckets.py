"""Buckets arrive at the engines unchanged, in order and once; the report says how long each part took."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tau2_lightning.rollout.engine.fleet import Fleet
from tau2_lightning.rollout.engine.member import EngineMember
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.engine.vllm_client import VLLMClient
from tau2_lightning.rollout.weights.delivery import Delivery
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.sync_round import PARTS
from tau2_lightning.rollout.weights.wire import Bucket
from tau2_lightning.strategy.weights import persistent_tensors
from tests.strategy.distributed import fork
from tests.strategy.tiny import connected, tiny_model

SLEEP = 0.05
Tensors = list[tuple[str, torch.Tensor]]


class Client(VLLMClient):
    """Records the requests; each takes ``SLEEP`` seconds."""

    def __init__(self, name: str) -> None:
        super().__init__(f"http://{name}", name=name)
        self.asked: list[str] = []
        self.updates: list[Any] = []

    async def control(self, path: str, body: Mapping[str, Any] | None = None, **params: str) -> dict[str, Any]:
        await asyncio.sleep(SLEEP)
        self.asked.append(path)
        if path == "/update_weights":
            assert body is not None
            self.updates.append(body["update_info"])
            if "path" in body["update_info"]:
                self.updates[-1] = load_file(body["update_info"]["path"])
        return {"success": True}


class ByReference:
    """A transport without files, like those over CUDA: the engines get the tensors themselves."""

    on_cpu = False

    def __init__(self) -> None:
        self.sent: list[Bucket] = []

    async def prepare(self, members: object) -> None:
        pass

    async def send(self, name: str, bucket: Bucket, delivery: Delivery) -> None:
        self.sent.append(dict(bucket))
        update = {"update_info": {"names": list(bucket)}}
        await delivery.deliver(lambda client: client.control("/update_weights", update))


def two_servers() -> Fleet:
    """Two remote servers that are ready."""
    made = Fleet(EngineSettings(urls=("http://localhost:1", "http://localhost:2")))
    for name in ("a", "b"):
        member = EngineMember(Client(name), None)
        member.ready = True
        made.members.append(member)
    return made


@pytest.fixture
def fleet() -> Fleet:
    return two_servers()


class Trainer:
    """Rank 0 of a sharded trainer: the next bucket takes ``SLEEP`` seconds, and the last one is emptied."""

    def __init__(self, sizes: list[list[int]]) -> None:
        self.sizes = sizes
        self.given: list[dict[str, list[float]]] = []
        self.asked = 0

    def __iter__(self) -> Iterator[Tensors]:
        for number, sizes in enumerate(self.sizes):
            self.asked += 1
            time.sleep(SLEEP)
            bucket = [(f"{number}.{i}", torch.randn(size, 2).t()) for i, size in enumerate(sizes)]
            self.given.append({name: tensor.flatten().tolist() for name, tensor in bucket})
            yield bucket
            bucket.clear()


def values(bucket: Bucket) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in bucket.items()}


SIZES = [[3, 1], [50], [2, 2, 2], [1]]


@pytest.mark.parametrize("keep_snapshot", [True, False])
async def test_by_file_what_arrives_is_bucket_for_bucket_what_came(
    fleet: Fleet, tmp_path: Path, keep_snapshot: bool
) -> None:
    trainer = Trainer(SIZES)
    publisher = WeightPublisher(fleet, files=WeightFiles(tmp_path, tmp_path), keep_snapshot=keep_snapshot)
    report = await publisher.publish(1, iter(trainer))
    assert trainer.asked == len(SIZES)
    for member in fleet.members:
        arrived = member.client.updates  # type: ignore[attr-defined]
        # A safetensors file does not keep the order of names.
        assert [dict(sorted(values(bucket).items())) for bucket in arrived] == trainer.given
    assert report.bytes == sum(4 * len(v) for bucket in trainer.given for v in bucket.values())


async def test_without_files_what_arrives_is_bucket_for_bucket_what_came(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, transport = Trainer(SIZES), ByReference()
    choose = "tau2_lightning.rollout.weights.publisher.choose_transport"
    monkeypatch.setattr(choose, lambda *_: transport)
    await WeightPublisher(fleet, files=WeightFiles(tmp_path, tmp_path)).publish(1, iter(trainer))
    assert [values(bucket) for bucket in transport.sent] == trainer.given
    assert all(tensor.is_contiguous() for bucket in transport.sent for tensor in bucket.values())


async def test_a_bucket_is_taken_once_the_one_before_has_arrived(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one bucket exists at a time, so that all ranks of a trainer run the same sequence of collectives."""
    choose = "tau2_lightning.rollout.weights.publisher.choose_transport"
    monkeypatch.setattr(choose, lambda *_: ByReference())
    client = fleet.members[0].client
    arrived_before: list[int] = []

    def buckets() -> Iterator[Tensors]:
        for number in range(4):
            arrived_before.append(len(client.updates))  # type: ignore[attr-defined]
            yield [(f"{number}", torch.ones(2))]

    publisher = WeightPublisher(fleet, files=WeightFiles(tmp_path, tmp_path), keep_snapshot=False)
    await publisher.publish(1, buckets())
    assert arrived_before == [0, 1, 2, 3]


@pytest.mark.parametrize("keep_snapshot", [True, False])
async def test_the_parts_of_a_publication_add_up(fleet: Fleet, tmp_path: Path, keep_snapshot: bool) -> None:
    publisher = WeightPublisher(fleet, files=WeightFiles(tmp_path, tmp_path), keep_snapshot=keep_snapshot)
    seconds = (await publisher.publish(1, iter(Trainer(SIZES)))).seconds
    assert set(seconds) == {*PARTS, "total"}
    assert seconds["total"] == pytest.approx(sum(seconds[part] for part in PARTS), abs=0.1)
    assert seconds["gather"] >= len(SIZES) * SLEEP
    assert seconds["write"] > 0
    assert seconds["pause"] >= SLEEP
    assert seconds["load"] >= (len(SIZES) + 2) * SLEEP  # start, the buckets, finish
    assert seconds["resume"] >= 2 * SLEEP  # the prefix cache, then resume


async def test_an_adapter_has_the_same_parts(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"0" * 10)
    publisher = WeightPublisher(fleet, files=WeightFiles(tmp_path, tmp_path))
    report = await publisher.publish_adapter(1, tmp_path)
    assert report.bytes == 10 and set(report.seconds) == {*PARTS, "total"}
    assert report.seconds["gather"] == report.seconds["write"] == 0
    assert report.seconds["load"] >= 2 * SLEEP


def published(layout: str) -> dict[str, Any]:
    """Publish a model that is sharded over ranks: rank 0 publishes, the other ranks take part in the gathers."""
    engine = connected(layout)
    engine.parallelize(tiny_model(tied=True))
    buckets = engine.iter_full_weights(20_000)
    if engine.mesh.rank:
        return {"empty": all(bucket == [] for bucket in buckets)}
    transport, folder = ByReference(), Path(tempfile.mkdtemp())

    async def publish() -> None:
        fleet = two_servers()
        publisher = WeightPublisher(fleet, files=WeightFiles(folder, folder), keep_snapshot=False)
        publisher._transport = transport
        await publisher.publish(1, buckets)

    asyncio.run(publish())
    return {"sent": [{name: tensor.clone() for name, tensor in bucket.items()} for bucket in transport.sent]}


def test_ranks_that_gather_in_step_publish_the_whole_model() -> None:
    first, second = fork(2, published, "d2")
    assert second["empty"] and len(first["sent"]) > 3
    whole = persistent_tensors(tiny_model(tied=True))
    assert [name for bucket in first["sent"] for name in bucket] == list(whole)
    for bucket in first["sent"]:
        for name, tensor in bucket.items():
            torch.testing.assert_close(tensor, whole[name].detach(), rtol=0, atol=0)
