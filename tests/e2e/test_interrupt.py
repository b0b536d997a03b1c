"""Ctrl-C ends a run with exit code 130, leaves no child process, and names the last checkpoint, which is usable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tau2_lightning.strategy.checkpoint import read_meta
from tests.e2e.reference_models import ReferenceModels

pytestmark = pytest.mark.e2e

DEADLINE = 300.0


def interrupt(words: list[str], ready: Callable[[list[str]], bool], *, children: bool = True) -> list[str]:
    """Start the main job, press Ctrl-C when ``ready`` says so of its output, and return all it printed.

    The job must end with 130, and the processes that it started must end too.
    """
    command = [sys.executable, "-m", "tau2_lightning.train", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_heed_interrupts
    ) as process:
        lines: list[str] = []
        output = process.stdout
        assert output is not None
        reader = threading.Thread(target=lambda: lines.extend(iter(output.readline, "")), daemon=True)
        reader.start()
        ends = time.monotonic() + DEADLINE
        job = psutil.Process(process.pid)
        # The engine's log exists a moment before its process does.
        while not ready(lines) or (children and not job.children()):
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < ends, "".join(lines)
            time.sleep(0.2)
        started = job.children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, "".join(lines)
        reader.join(10)
    _, alive = psutil.wait_procs(started, timeout=15)
    assert not alive, f"left behind: {alive}"
    return lines


def _heed_interrupts() -> None:
    """Restore SIGINT as at a terminal: a shell lets its background processes ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def small(tmp_path: Path) -> list[str]:
    return [
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


def test_ctrl_c_while_training(reference: ReferenceModels, tmp_path: Path):
    words = [f"actor.path={reference.folders['A']}", "actor=tiny", *small(tmp_path)]
    lines = interrupt(words, lambda lines: any(line.startswith("step 3/") for line in lines))
    assert any("trial_name=t ckpt_path=last" in line for line in lines)
    finished = [path for path in (tmp_path / "e" / "t" / "checkpoints").glob("*.ckpt") if (path / "meta.pt").is_file()]
    assert finished
    assert read_meta(finished[0])["weights_version"] >= 1


def test_ctrl_c_while_the_engine_starts(reference: ReferenceModels, tmp_path: Path):
    words = [f"actor.path={reference.folders['A']}", "actor=tiny", *small(tmp_path)]
    log = tmp_path / "e" / "t" / "logs" / "engine.log"
    lines = interrupt(words, lambda lines: any("starting the engine" in line for line in lines) and log.exists())
    assert not any("to resume, repeat" in line for line in lines), "there is nothing to resume yet"
    assert not any("Traceback" in line for line in lines)


def test_ctrl_c_in_the_warm_start(tmp_path: Path):
    short = ["warm_start.demonstrations=20", "warm_start.steps=100000", f"cache_dir={tmp_path}/cache"]
    written = tmp_path / "e" / "t" / "logs" / "warm_start" / "metrics.csv"
    lines = interrupt([*small(tmp_path), *short], lambda lines: written.exists(), children=False)
    assert any(line.startswith("interrupted") for line in lines)
    assert not any("Traceback" in line for line in lines)
    left = [path.name for path in (tmp_path / "cache" / "warm_start").iterdir()]
    assert len(left) == 1 and left[0].startswith("."), "an unfinished policy is kept apart, to go on with"
    assert list((tmp_path / "cache" / "warm_start" / left[0] / "checkpoints").glob("step*.ckpt/meta.pt"))
