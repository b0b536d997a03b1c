"""Ctrl-C at work: exit code 130, no child left, the last checkpoint usable and named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from reference_models import ReferenceModels

from tau2_lightning.strategy.checkpoint import read_meta

pytestmark = pytest.mark.e2e

DEADLINE = 300.0


def test_ctrl_c_while_training(reference: ReferenceModels, tmp_path: Path):
    words = [
        f"actor.path={reference.folders['A']}",
        "actor=tiny",
        "econfig.policy=ticket",
        f"output_dir={tmp_path}",
        "experiment_name=e",
        "trial_name=t",
        "logger=csv",
        "trainer.progress=plain",
        "trainer.validate_before=false",
        "trainer.max_epochs=500",
        "train_dataset.batches_per_epoch=1",
        "train_dataset.batch_size=2",
        "gconfig.n_samples=2",
        "gconfig.max_new_tokens=16",
        "rollout.filter_groups=false",
        "algorithm.reward_bias=-0.5",
        "algorithm.mean_level=none",
        "algorithm.std_level=none",
    ]
    command = [sys.executable, "-m", "tau2_lightning.train", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)
        reader.start()
        ends = time.monotonic() + DEADLINE
        while not any(line.startswith("step 3/") for line in lines):
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < ends, "".join(lines)
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "the engine runs as a child"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, "".join(lines)
        reader.join(10)
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, f"left behind: {alive}"
    assert any("trial_name=t ckpt_path=last" in line for line in lines)
    finished = [path for path in (tmp_path / "e" / "t" / "checkpoints").glob("*.ckpt") if (path / "meta.pt").is_file()]
    assert finished
    assert read_meta(finished[0])["weights_version"] >= 1
