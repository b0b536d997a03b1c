"""A run on a Ray cluster of two nodes: a placement group, a node agent in each bundle, an engine on the other node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.launch_words import small_run, steps
from tests.e2e.reference_models import ReferenceModels

pytestmark = pytest.mark.e2e

DEADLINE = 400.0


@pytest.fixture(scope="module")
def cluster_address() -> Iterator[str]:
    """Two nodes of one CPU each, by real raylets on this machine, which promise a GPU that nothing uses."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    cluster = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20},
    )
    cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20)
    yield cluster.address
    cluster.shutdown()


def run_on_ray(address: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tau2_lightning.train", "scheduler.type=ray", f"scheduler.ray_address={address}"]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=DEADLINE)


@pytest.mark.slow
def test_two_nodes_train_with_the_engine_on_one_and_the_trainer_on_the_other(
    cluster_address: str, reference: ReferenceModels, tmp_path: Path
):
    # Each node has one "device": the engine takes node 0, the trainer node 1, as on GPUs.
    layout = ["allocation_mode=vllm:d1+archon:d1", "cluster.n_nodes=2", "cluster.n_gpus_per_node=1", "trial_name=apart"]
    # With trainer.accelerator=cpu nodes would have no devices to take.
    words = [word for word in small_run(reference, tmp_path, epochs=1) if not word.startswith("trainer.accelerator")]
    done = run_on_ray(cluster_address, [*words, *layout])
    run = tmp_path / "e2e" / "apart"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(steps(run)) == 1
    assert "after" in json.loads((run / "report.json").read_text())["evaluations"]
    (launch,) = (run / "logs" / "launch").iterdir()
    cards = [json.loads((launch / f"node-{node}").read_text()) for node in (0, 1)]
    assert cards[0]["agent"] != cards[1]["agent"]
    # The engine was started through the other node's agent, and ended with the run.
    assert f"vLLM server on http://{cards[0]['address']}:" in (run / "logs" / "engine.log").read_text()
    assert not [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(run) in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
    ]


@pytest.mark.slow
def test_two_nodes_with_a_rank_on_each(cluster_address: str, reference: ReferenceModels, tmp_path: Path):
    layout = ["allocation_mode=vllm:d1+archon:d2", "cluster.n_nodes=2", "trial_name=ranks"]
    done = run_on_ray(cluster_address, [*small_run(reference, tmp_path, epochs=1), *layout])
    run = tmp_path / "e2e" / "ranks"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(steps(run)) == 1
    assert {path.name for path in (run / "logs").glob("run-rank*.log")} == {"run-rank0.log", "run-rank1.log"}


def test_a_cluster_without_the_resources_says_so(cluster_address: str, reference: ReferenceModels, tmp_path: Path):
    layout = ["allocation_mode=vllm:d1+archon:d3", "cluster.n_nodes=3", "scheduler.start_timeout=3"]
    words = [*small_run(reference, tmp_path, epochs=1), *layout, "gconfig.n_samples=3"]
    done = run_on_ray(cluster_address, words)
    assert done.returncode == 1
    assert "waiting for 3 nodes" in done.stderr


def test_no_cluster_says_so(reference: ReferenceModels, tmp_path: Path):
    done = run_on_ray("127.0.0.1:1", small_run(reference, tmp_path, epochs=1))
    assert done.returncode == 2
    assert "scheduler.ray_address" in done.stderr
