"""A run as a Slurm job over two nodes, by real daemons; requeued in the middle, it continues from its checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tau2_lightning.launch.run_folder import META
from tau2_lightning.strategy.checkpoint import read_meta
from tests.e2e.launch_words import small_run, steps
from tests.e2e.reference_models import ReferenceModels
from tests.e2e.slurm_cluster import SlurmCluster, missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: no {', '.join(missing())}"),
]

DEADLINE = 400.0
EPOCHS = 8  # each takes a second, so that the requeue comes in the middle


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(slurm: SlurmCluster, words: list[str]) -> str:
    command = [sys.executable, "-m", "tau2_lightning.train", "scheduler.type=slurm", *words]
    done = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"submitted job (\d+) on 2 node", done.stdout)
    assert found, done.stdout
    return found[1]


def wait_until(done: object, slurm: SlurmCluster, job: str, run: Path) -> None:
    assert callable(done)
    ends = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < ends, told(slurm, job, run)
        assert slurm.state(job) not in ("FAILED", "NODE_FAIL", "CANCELLED"), told(slurm, job, run)
        time.sleep(0.3)


def told(slurm: SlurmCluster, job: str, run: Path) -> str:
    files = sorted((run / "logs" / "slurm").glob(f"{job}*log*"))
    printed = "\n".join(f"--- {file.name}\n{file.read_text()[-3000:]}" for file in files)
    return f"{slurm.logs(15)}\njob {job} is {slurm.state(job)}\n{printed}"


def checkpoints(run: Path) -> list[Path]:
    return [path for path in (run / "checkpoints").glob("*.ckpt") if (path / META).is_file()]


def test_two_nodes_train_and_a_requeued_job_resumes(slurm: SlurmCluster, reference: ReferenceModels, tmp_path: Path):
    layout = ["allocation_mode=vllm:d1+archon:d2", "cluster.n_nodes=2", "trial_name=slurm", "trainer.save_top_k=-1"]
    job = submit(slurm, [*small_run(reference, tmp_path, epochs=EPOCHS), *layout])
    run = tmp_path / "e2e" / "slurm"
    wait_until(lambda: checkpoints(run), slurm, job, run)
    trained = max(read_meta(path)["global_step"] for path in checkpoints(run))
    assert 1 <= trained < EPOCHS
    assert subprocess.run(["scontrol", "requeue", job], env=slurm.environment, timeout=60).returncode == 0
    wait_until(lambda: slurm.state(job) == "COMPLETED", slurm, job, run)
    assert len(list((run / "logs" / "launch").iterdir())) == 2, "two starts"
    assert {path.name for path in run.glob("config*.yaml")} == {"config.yaml", "config-2.yaml"}
    assert "after" in json.loads((run / "report-2.json").read_text())["evaluations"]
    assert steps(run) == list(range(EPOCHS)), "one record over both starts, each step once"
    assert read_meta(max(checkpoints(run), key=lambda path: path.stat().st_mtime))["global_step"] == EPOCHS
    nodes = [json.loads((folder / "node-1").read_text()) for folder in (run / "logs" / "launch").iterdir()]
    assert len(nodes) == 2
    assert {path.name for path in (run / "logs").glob("run-rank*.log")} == {"run-rank0.log", "run-rank1.log"}
