"""A run that cannot start here is one clear violation; settings that are left open get one defined value."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from tau2_lightning.launch import cluster
from tau2_lightning.launch.cluster import placement_of, trainer_accelerator, trainer_devices
from tau2_lightning.launch.rules import check_launch
from tau2_lightning.run.compose import load_config


def config(*words: str):
    return load_config(["domain=mock", *words], check=False)


def violations(*words: str) -> list[str]:
    return [str(violation) for violation in check_launch(config(*words))]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretend that this machine has this number of GPUs."""
    return lambda count: monkeypatch.setattr("torch.cuda.device_count", lambda: count)


def test_the_default_starts():
    assert violations() == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["allocation_mode=vllm:d1+archon:d1", "cluster.n_nodes=2"], "do not divide over 2 nodes"),
        (["allocation_mode=vllm:d1+archon:d2", "cluster.n_nodes=2"], "scheduler.type=local starts one node"),
        (["allocation_mode=vllm:d1+archon:d8", "cluster.n_gpus_per_node=8"], "needs 9 devices"),
        (["allocation_mode=vllm:d1+vllm[b]:d1+archon:d1"], "nothing would use it. Call it vllm[user]"),
        (["allocation_mode=vllm:d1+vllm[user]:d1+archon:d1"], "no user engine is configured"),
        (["allocation_mode=vllm:d1+archon:d1+archon[b]:d1"], "one component trains"),
        (["allocation_mode=vllm:p2+archon:d1"], "engines are not split over p"),
        (["allocation_mode=vllm:d1+megatron:(attn:d2t2|ffn:t2e2)"], "t2 in ffn would split each expert"),
        (["allocation_mode=archon:d1"], "names no engine"),
        (["allocation_mode=vllm:d1"], "names no trainer"),
    ],
)
def test_refusals(words: list[str], says: str):
    (found,) = violations(*words)
    assert says in found
    assert words[0].partition("=")[2] in found or "n_nodes" in found


def test_errors_quote_the_allocation_and_point_at_the_component():
    (found,) = violations("allocation_mode=vllm:d1+archon:d8", "cluster.n_gpus_per_node=8")
    quoted, caret = found.splitlines()[-2:]
    assert quoted.strip() == "vllm:d1+archon:d8"
    assert quoted[caret.index("^") :].startswith("archon")


@pytest.mark.parametrize(("kind", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_extra(kind: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else object())
    monkeypatch.setattr(shutil, "which", lambda name, **k: f"/usr/bin/{name}")
    (found,) = violations(f"scheduler.type={kind}")
    assert f"Install tau2-lightning[{kind}]" in found


def test_a_machine_without_sbatch_cannot_submit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: object())
    monkeypatch.setattr(shutil, "which", lambda name, **k: None)
    (found,) = violations("scheduler.type=slurm")
    assert "sbatch is not in PATH" in found


def test_inside_a_job_nothing_of_this_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name, **k: None)
    monkeypatch.setenv("TAU2_LIGHTNING_JOB", '{"launch_id": "j", "node": 0, "agents": ["a:1", "b:1"]}')
    assert violations("scheduler.type=slurm", "allocation_mode=vllm:d1+archon:d2", "cluster.n_nodes=2") == []


def test_torchrun_must_start_as_many_ranks_as_the_trainer_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "3")
    (found,) = violations("allocation_mode=vllm:d1+archon:d2")
    assert "needs 2 trainer ranks, torchrun started 3" in found
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert violations("allocation_mode=vllm:d1+archon:d2", "cluster.n_nodes=2") == []
    apart = ["allocation_mode=vllm:d2+archon:d2", "cluster.n_nodes=2", "cluster.n_gpus_per_node=2"]
    (found,) = violations(*apart)
    assert "where torchrun starts none" in found
    assert violations(*apart, "rollout.engine_urls=['http://engine:8000']") == []


def test_one_gpu_is_shared_and_two_are_not(gpus):
    gpus(1)
    shared = placement_of(config())
    assert shared.engines[0].devices == (0,) and shared.trainer[0].local == 0
    assert str(shared.allocation) == "vllm:d1|archon:d1p1t1"
    gpus(2)
    apart = placement_of(config())
    assert apart.engines[0].devices == (0,) and apart.trainer[0].local == 1
    assert "needs 3 devices" in violations("allocation_mode=vllm:d1+archon:d2")[0]


def test_the_trainer_takes_its_own_gpus(gpus, monkeypatch: pytest.MonkeyPatch):
    gpus(4)
    assert trainer_devices(config("allocation_mode=vllm:d2+archon:d2")) == ([2, 3], 1)
    assert trainer_devices(config("allocation_mode=archon:d2+vllm:d2")) == ([0, 1], 1)
    over_nodes = ["allocation_mode=vllm:d2|archon:d2+archon[b]:d1", "cluster.n_gpus_per_node=4"]
    assert len(violations(*over_nodes)) == 1
    uneven = ["allocation_mode=vllm:d2+archon:d4", "cluster.n_nodes=2", "cluster.n_gpus_per_node=4"]
    monkeypatch.setenv("TAU2_LIGHTNING_JOB", '{"launch_id": "j", "node": 1, "agents": ["a:1", "b:1"]}')
    assert trainer_devices(config(*uneven)) == ([0, 1], 2)


def test_on_cpu_the_trainer_takes_processes():
    assert trainer_devices(config("allocation_mode=vllm:d1+archon:d2p2")) == (4, 1)
    assert trainer_devices(config("allocation_mode=vllm:d1+archon:d2p2", "cluster.n_nodes=2")) == (2, 2)


def test_a_cluster_has_what_the_allocation_needs_unless_it_says_otherwise():
    words = ["scheduler.type=slurm", "allocation_mode=vllm:d4t2+archon:d4p2t1", "cluster.n_nodes=2"]
    assert placement_of(config(*words)).gpus_per_node == 8
    assert placement_of(config(*words, "trainer.accelerator=cpu")).on_cpu
    assert placement_of(config(*words, "cluster.n_gpus_per_node=16")).trainer_nodes == (0,)


def test_more_gpus_than_are_visible(gpus):
    gpus(2)
    assert "2 are visible here" in violations("cluster.n_gpus_per_node=8")[0]


def test_the_users_engine_needs_a_gpu_of_its_own(gpus):
    gpus(3)
    user = "econfig.user_engine.path=some/model"
    assert "Add vllm[user]:d1" in violations(user)[0]
    assert violations(user, "rollout.gpu_memory_utilization=0.4") == []
    assert violations(user, "allocation_mode=vllm:d1+vllm[user]:d1+archon:d1") == []


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.accelerator=cpu"],
        ["cluster.n_gpus_per_node=0"],
        ["trainer.accelerator=cpu", "cluster.n_gpus_per_node=4"],
    ],
)
def test_cpu_ignores_what_cuda_could_see(gpus, words: list[str]):
    gpus(4)
    on_cpu = config("allocation_mode=vllm:d1+archon:d2", *words)
    assert cluster.visible_gpus(on_cpu) == 0 and placement_of(on_cpu).on_cpu
    assert trainer_devices(on_cpu) == (2, 1) and trainer_accelerator(on_cpu) == "cpu"


def test_what_lightning_takes_is_left_to_it_on_gpus(gpus):
    gpus(4)
    assert trainer_accelerator(config()) == "auto"


def test_cuda_where_nothing_is_placed_on_gpus(gpus):
    gpus(4)
    assert violations("trainer.accelerator=cuda") == []
    (found,) = violations("trainer.accelerator=cuda", "cluster.n_gpus_per_node=0")
    assert "trainer.accelerator='cuda': cluster.n_gpus_per_node is 0" in found
