"""The requests to Slurm and Ray; sbatch's refusal is one clear error. (tests/e2e runs the real programs.)"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from tau2_lightning.errors import ConfigError
from tau2_lightning.launch import ray, slurm
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.run.compose import load_config

TWO_NODES = ["domain=mock", "allocation_mode=vllm:d4t2+archon:d4p2t1", "cluster.n_nodes=2", "scheduler.type=slurm"]


def config(*words: str):
    return load_config([*TWO_NODES, *words], check=False)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A PATH with an sbatch that gives a prepared answer, and keeps the job's script."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()

    def answer(script: str) -> None:
        for name in ("sbatch", "srun"):
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return answer


def test_the_jobs_script(sbatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sbatch(f'cp "$1" {tmp_path}/script; echo "Submitted batch job 7"')
    words = [*TWO_NODES, f"output_dir={tmp_path}", "trial_name=t", "scheduler.slurm.partition=gpu"]
    assert slurm.submit(load_config(words, check=False), words) == 0
    shown = capsys.readouterr().out
    assert "submitted job 7 on 2 node(s)" in shown and "scancel 7" in shown
    flags = dict(re.findall(r"#SBATCH --([\w-]+)(?:=(.*))?", (tmp_path / "script").read_text()))
    expected = {"nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "time": "1440", "partition": "gpu"}
    assert expected.items() <= flags.items()
    assert {"exclusive", "requeue", "signal"} <= set(flags)
    assert "--kill-on-bad-exit=1" in (tmp_path / "script").read_text()
    run = tmp_path / "tau2-grpo" / "t"
    assert (run / "logs" / "slurm").stat().st_mode & 0o077 == 0, "the folder holds keys"
    assert not list(run.glob("config*")), "only the job itself writes its configuration"


def test_a_requeued_job_keeps_the_checkpoint_it_was_given_until_it_has_one_of_its_own():
    before = time.time()
    assert slurm.resume_after(config()) == 0.0
    after = slurm.resume_after(config("ckpt_path=some.ckpt"))
    assert after is not None and before <= after <= time.time()
    assert slurm.resume_after(config("mode=validate", "ckpt_path=some.ckpt")) is None
    assert slurm.resume_after(config("mode=validate")) is None
    assert config("ckpt_path=some.ckpt", "ckpt_path=last").ckpt_path == "last"


def test_what_sbatch_refuses_is_told(sbatch, tmp_path: Path):
    sbatch('echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1')
    words = [f"output_dir={tmp_path}", "scheduler.slurm={partition: nowhere}"]
    with pytest.raises(ConfigError, match=r"scheduler\.slurm=.*nowhere(.|\n)*invalid partition"):
        slurm.submit(config(*words), words)


def test_a_parameter_that_submitit_does_not_know(sbatch, tmp_path: Path):
    sbatch("exit 1")
    words = [f"output_dir={tmp_path}", "scheduler.slurm={partitoin: gpu}"]
    with pytest.raises(ConfigError, match="partitoin"):
        slurm.submit(config(*words), words)


def test_shared_nodes_and_cpu_nodes():
    shared = config("scheduler.cpus_per_node=12", "trainer.accelerator=cpu", "scheduler.slurm={time: 5}")
    asked = slurm.parameters(shared, placement_of(shared))
    assert asked["cpus_per_task"] == 12 and asked["time"] == 5
    assert not {"exclusive", "gpus_per_node"} & set(asked)


def test_a_bundle_of_ray():
    gpus = config("scheduler.type=ray")
    assert ray.resources(gpus, placement_of(gpus)) == {"CPU": 1.0, "GPU": 8.0}
    cpus = config("scheduler.type=ray", "trainer.accelerator=cpu", "scheduler.cpus_per_node=4")
    assert ray.resources(cpus, placement_of(cpus)) == {"CPU": 4.0}


def test_nobody_at_rays_address(tmp_path: Path):
    pytest.importorskip("ray")
    words = ["scheduler.type=ray", "scheduler.ray_address=127.0.0.1:1", f"output_dir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"scheduler\.ray_address='127\.0\.0\.1:1': no cluster there"):
        ray.run(config(*words), words)
    assert not list(tmp_path.iterdir())
