"""Weights to SGLang: the sequence of each transport, and the tensors that are refused before anything is sent."""

from __future__ import annotations

import base64
import pickle
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from aiohttp import web
from safetensors.torch import load_file, save_file

from tau2_lightning.errors import ConfigError, InfrastructureFault
from tau2_lightning.rollout.engine.fleet import Fleet
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.on_device import CPU
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.rollout.weights.sglang_transports import GroupTransport, TensorTransport
from tau2_lightning.rollout.weights.transports import FileTransport, choose_transport
from tests.rollout.engine.fake_sglang import FakeSGLang, pool_of, serving

TENSORS = [(f"layer.{i}.weight", torch.full((10, 10), float(i))) for i in range(5)]
BUCKETS = [TENSORS[:2], TENSORS[2:4], TENSORS[4:]]
BEGIN = ["/pause_generation", "/begin_weight_update"]
END = ["/end_weight_update", "/update_weight_version", "/continue_generation"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({name: torch.zeros(10, 10) for name, _ in TENSORS}, folder / "model.safetensors")
    return folder


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[FakeSGLang]]:
    async with serving((1, 2, 3), (1, 2, 3)) as made:
        yield made


@pytest_asyncio.fixture
async def pool(servers: list[FakeSGLang], model: Path) -> AsyncIterator[EnginePool]:
    async with pool_of(servers, model) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> WeightFiles:
    return WeightFiles(shared=tmp_path, fallback=tmp_path)


async def test_files_are_loaded_at_once_from_a_folder_of_this_version_alone(pool, servers, files, tmp_path):
    seen: list[dict[str, float]] = []

    def load(request: web.Request, body: dict) -> None:
        folder = Path(body["model_path"])
        seen.append({n: float(t[0, 0]) for file in folder.iterdir() for n, t in load_file(file).items()})

    servers[0].behave["/update_weights_from_disk"] = load
    publisher = WeightPublisher(pool, files=files)
    await publisher.publish(1, BUCKETS, mode="keep")
    await publisher.publish(2, [[(name, tensor + 10) for name, tensor in bucket] for bucket in BUCKETS], mode="keep")
    assert servers[1].calls == 2 * [*BEGIN, "/update_weights_from_disk", *END]
    assert [server.version for server in servers] == ["2", "2"] and not servers[0].aborted.is_set()
    assert seen == [{name: float(tensor[0, 0]) + more for name, tensor in TENSORS} for more in (0, 10)]
    assert not list(tmp_path.rglob("sglang-*")), "the folders of links are gone"


async def test_tensors_travel_in_requests(pool, servers, files):
    seen: dict[str, float] = {}

    def take(request: web.Request, body: dict) -> None:
        (packed,) = body["serialized_named_tensors"]
        seen.update({name: float(tensor[0, 0]) for name, tensor in pickle.loads(base64.b64decode(packed))})

    servers[0].behave["/update_weights_from_tensor"] = take
    await WeightPublisher(pool, backend="http", files=files).publish(1, BUCKETS, mode="keep")
    assert servers[1].calls == [*BEGIN, *["/update_weights_from_tensor"] * 3, *END]
    assert seen == {name: float(tensor[0, 0]) for name, tensor in TENSORS}


@pytest.mark.parametrize("backend", ["auto", "http"])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("layer.0.weight", torch.zeros(3)), r"layer.0.weight has the shape \(3,\) in the trainer and \(10, 10\)"),
        (("layer.9.weight", torch.zeros(10, 10)), "no tensor layer.9.weight"),
    ],
)
async def test_a_tensor_that_would_end_the_server_is_not_sent(pool, servers, files, backend, wrong, named):
    with pytest.raises(ValueError, match=named):
        await WeightPublisher(pool, backend=backend, files=files).publish(1, [*BUCKETS, [wrong]])
    updates = {call for server in servers for call in server.calls if call.startswith("/update")}
    assert not {"/update_weights_from_disk", "/update_weight_version"} & updates


async def test_a_model_without_weight_files_is_published_unchecked(servers, files, tmp_path):
    settings = EngineSettings(backend="sglang", urls=(servers[0].url,), model_path=str(tmp_path / "none"))
    async with EnginePool(settings) as pool:
        await WeightPublisher(pool, files=files).publish(1, BUCKETS)
    assert servers[0].version == "1"


async def test_an_adapter_is_served_under_the_new_version(pool, servers, files, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    publisher = WeightPublisher(pool, files=files)
    for version in (1, 2):
        await publisher.publish_adapter(version, folder)
    assert [server.version for server in servers] == ["2", "2"]
    assert [len(server.adapters) for server in servers] == [1, 1]
    await publisher.publish(3, BUCKETS)
    assert pool.members[0].client.model is None, "full weights replace the adapter"


@pytest.mark.parametrize("step", ["/pause_generation", "/update_weights_from_disk", "/update_weight_version"])
async def test_a_failing_step_is_loud_and_resumes_everyone(pool, servers, files, step):
    healthy = dict(servers[1].behave)
    servers[1].behave[step] = lambda request, body: web.Response(status=500, text="broken")
    with pytest.raises(InfrastructureFault, match=r"engine 1.*broken"):
        await WeightPublisher(pool, files=files).publish(1, BUCKETS)
    assert all(server.calls[-1] == "/continue_generation" for server in servers)
    assert not pool.members[1].ready
    servers[1].behave = healthy
    await WeightPublisher(pool, files=files).publish(2, BUCKETS)
    assert all(member.ready and member.version == 2 for member in pool.members)


def choose(name: str, files: WeightFiles, mode: str = "full", **changes: object) -> object:
    settings = replace(EngineSettings(backend="sglang", model_path="m", device="cpu"), **changes)  # type: ignore
    return choose_transport(name, Fleet(settings), files, CPU, mode)


def test_sglang_gets_files_or_requests(files):
    assert isinstance(choose("auto", files), FileTransport)
    assert isinstance(choose("auto", files, urls=("http://node7:1",)), TensorTransport)
    assert isinstance(choose("auto", files, device="cuda"), FileTransport)
    assert isinstance(choose("gloo", files), GroupTransport)


@pytest.mark.parametrize(
    ("name", "mode", "changes", "named"),
    [
        ("nccl", "full", {"device": "cuda"}, "not tested with SGLang"),
        ("ipc", "full", {"device": "cuda"}, "not tested with SGLang"),
        ("gloo", "full", {"device": "cuda"}, "that the run starts on CPUs"),
        ("gloo", "full", {"urls": ("http://node7:1",)}, "that the run starts on CPUs"),
        ("http", "full", {"tensor_parallel": 2}, "of one device only"),
        ("auto", "delta", {}, "sends all weights to SGLang"),
    ],
)
def test_what_is_not_tested_is_refused(files, name, mode, changes, named):
    with pytest.raises(ConfigError, match=named):
        choose(name, files, mode, **changes)


def test_vllm_joins_no_gloo_group(files):
    with pytest.raises(ConfigError, match="a group that SGLang joins"):
        choose_transport("gloo", Fleet(EngineSettings(model_path="m", device="cpu")), files, CPU)
