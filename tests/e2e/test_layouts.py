"""The main job under a parallel layout: four ranks train, rank 0 plays the episodes, the engine gets the weights."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_main_job import words  # noqa: F401  # the session's engine and small data

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_main_job_on_two_data_and_two_pipeline_ranks(words, reference, tmp_path: Path):  # noqa: F811
    kept = [word for word in words if not word.startswith("output_dir=")]
    command = [
        sys.executable, "-m", "tau2_lightning.train", *kept, f"actor.path={reference.folders['A']}",
        f"output_dir={tmp_path}", "experiment_name=e2e", "trial_name=d2p2", "trainer.accelerator=cpu",
        "allocation_mode=vllm:d1+archon:d2p2t1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "e2e" / "d2p2"
    assert set(json.loads((run / "report.json").read_text())["evaluations"]) == {"before", "after"}
    with (run / "metrics" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row.get("loss/mean")]
    assert len(steps) == 2
    ratios = [(float(row["ratio/mean"]), float(row["ratio/max"])) for row in steps]
    assert all(abs(value - 1) < 1e-4 for pair in ratios for value in pair), ratios
    guard = [float(row["sync/logp_difference/max"]) for row in rows if row.get("sync/logp_difference/max")]
    assert len(guard) == 2
    assert max(guard) < 1e-3
    assert (run / "policy" / "model.safetensors.index.json").is_file() or (
        run / "policy" / "model.safetensors"
    ).is_file()
