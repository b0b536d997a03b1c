"""Under torchrun the ranks agree on one run folder, rank 0 alone starts the engine, and a wrong count is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.launch_words import small_run, steps
from tests.e2e.reference_models import ReferenceModels

pytestmark = pytest.mark.e2e


def torchrun(processes: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launcher, "-m", "tau2_lightning.train", *words], capture_output=True, text=True, timeout=400
    )


def test_two_ranks_share_one_folder_and_one_engine(reference: ReferenceModels, tmp_path: Path):
    """Without trial_name, each rank by itself would name the folder after its own time."""
    done = torchrun(2, [*small_run(reference, tmp_path, epochs=1), "allocation_mode=vllm:d1+archon:d2"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = (tmp_path / "e2e").iterdir()
    assert len(steps(run)) == 1
    assert "after" in json.loads((run / "report.json").read_text())["evaluations"]
    assert {path.name for path in (run / "logs").glob("run-rank*.log")} == {"run-rank0.log", "run-rank1.log"}
    assert [path.name for path in run.glob("config*.yaml")] == ["config.yaml"]
    assert len(list((run / "logs").glob("engine*.log"))) == 1


def test_ranks_agree_on_a_folder_that_no_one_named(tmp_path: Path):
    program = tmp_path / "names.py"
    program.write_text(
        "import os, time\n"
        "from tau2_lightning.run.compose import load_config\n"
        "from tau2_lightning.launch.run_folder import RunFolder\n"
        "time.sleep(1.5 * int(os.environ['RANK']))\n"  # rank 1 by itself would use a later time
        f"config = load_config(['domain=mock', 'output_dir={tmp_path}/runs'], check=False)\n"
        "print('folder', RunFolder.create(config).root, flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    named = [line for line in done.stdout.splitlines() if line.startswith("folder ")]
    assert len(named) == 2 and len(set(named)) == 1
    (run,) = (tmp_path / "runs" / "tau2-grpo").iterdir()
    assert [path.name for path in run.glob("config*.yaml")] == ["config.yaml"]


def test_a_count_that_is_not_the_allocations_is_refused(reference: ReferenceModels, tmp_path: Path):
    done = torchrun(1, [*small_run(reference, tmp_path, epochs=1), "allocation_mode=vllm:d1+archon:d2"])
    assert done.returncode != 0
    assert "needs 2 trainer ranks, torchrun started 1" in done.stderr
