"""Placement of engines: GPUs on this node, or another node through its agent."""

from __future__ import annotations

import json

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.placement import ServerPlace
from tau2_lightning.launch.ranks import JOB_VARIABLE, KEY_VARIABLE, Job
from tau2_lightning.rollout.engine.command import server_environment
from tau2_lightning.rollout.engine.place import EnginePlace
from tau2_lightning.rollout.engine.server import EngineServer
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.engines import _places


def test_a_server_sees_its_gpus_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    settings = EngineSettings(device="cuda", places=(EnginePlace(devices=(0, 1)), EnginePlace(devices=(2, 3))))
    assert server_environment(settings, 1)["CUDA_VISIBLE_DEVICES"] == "6,7"


def test_without_places_each_takes_the_next(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = EngineSettings(device="cuda", data_parallel=2, tensor_parallel=2)
    assert server_environment(settings, 1)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in server_environment(EngineSettings(device="cuda"), 0)


def test_fewer_visible_than_placed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES='4'"):
        server_environment(EngineSettings(device="cuda", places=(EnginePlace(devices=(1,)),)), 0)


def test_another_nodes_engine_goes_through_its_agent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(JOB_VARIABLE, Job("j", 1, ("10.0.0.1:70", "10.0.0.2:71")).to_text())
    monkeypatch.setenv(KEY_VARIABLE, "the job's key")
    monkeypatch.setenv("VLLM_SET_BY_THE_USER", "1")
    monkeypatch.setenv("RANK", "0")
    far, near = _places([ServerPlace(0, (0, 1)), ServerPlace(1, (2,))])
    assert far == EnginePlace("10.0.0.1", (0, 1), "10.0.0.1:70")
    assert near == EnginePlace("127.0.0.1", (2,))

    settings = EngineSettings(device="cuda", api_key="the engine's key", places=(far, near))
    assert EngineServer(settings, 0).settings.host == "10.0.0.1"
    environment = server_environment(settings, 0)
    assert KEY_VARIABLE not in environment and "RANK" not in environment
    command, mine = far.through_agent("engine 0", ["vllm"], environment)
    assert command[-2] == "10.0.0.1:70" and mine[KEY_VARIABLE] == "the job's key"
    request = json.loads(command[-1])
    assert request["devices"] == [0, 1] and request["command"] == ["vllm"]
    assert {"VLLM_SET_BY_THE_USER", "VLLM_SERVER_DEV_MODE"} <= set(request["forward"])
    assert not {"PATH", "CUDA_VISIBLE_DEVICES", KEY_VARIABLE} & set(request["forward"])
    assert "the engine's key" not in " ".join(command), "other users of the machine see command lines"
