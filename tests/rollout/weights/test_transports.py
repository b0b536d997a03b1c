"""Which way weights take. The CUDA ways themselves need a GPU."""

from __future__ import annotations

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.rollout.engine.fleet import Fleet
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.transports import FileTransport, capable_transport, choose_transport


@pytest.fixture
def gpu_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)


def test_cpu_takes_files(tmp_path):
    pool = Fleet(EngineSettings(model_path="m", device="cpu"))
    assert isinstance(choose_transport("auto", pool, WeightFiles(tmp_path, tmp_path)), FileTransport)
    assert capable_transport(EngineSettings(urls=("http://127.0.0.1:1", "http://localhost:2"))) == "shm"


@pytest.mark.parametrize("name", ["nccl", "ipc"])
def test_cuda_ways_are_refused_without_cuda(name, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs CUDA"):
        choose_transport(name, Fleet(EngineSettings(model_path="m", device="cpu")), WeightFiles(tmp_path, tmp_path))


@pytest.mark.usefixtures("gpu_zero")
def test_the_fastest_capable_way_is_chosen(monkeypatch):
    assert capable_transport(EngineSettings(model_path="m")) == "ipc"  # trainer and engine share GPU 0
    assert capable_transport(EngineSettings(model_path="m", tensor_parallel=2)) == "shm"
    assert capable_transport(EngineSettings(urls=("http://node7:8000",))) == "nccl"
    monkeypatch.setattr("torch.cuda.current_device", lambda: 4)
    assert capable_transport(EngineSettings(model_path="m", data_parallel=2, tensor_parallel=2)) == "nccl"


@pytest.mark.usefixtures("gpu_zero")
def test_ipc_is_refused_where_it_cannot_reach(tmp_path):
    pool = Fleet(EngineSettings(model_path="m", tensor_parallel=2))
    with pytest.raises(ConfigError, match="one launched engine"):
        choose_transport("ipc", pool, WeightFiles(tmp_path, tmp_path))
