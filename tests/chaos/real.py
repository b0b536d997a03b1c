"""Faults of runs with a real engine: the smallest run on tau2's mock domain, with a tiny random policy."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.e2e.launch_words import small_run
from tests.e2e.reference_models import ReferenceModels

from .faults import BATCH, EVERY, INTERRUPTED, KILLED, STEPS, TERMINATED, Fault, kill
from .runs import Run

SAME = ("trial_name=t", "experiment_name=e")


def with_engine(root: Path) -> Run:
    """The main job in ``root`` with an engine of its own."""
    reference = ReferenceModels(root / "policies")
    command = ["-m", "tau2_lightning.train", *small_run(reference, root, epochs=1)]
    command += [*SAME, f"cache_dir={root / 'cache'}", "trainer.limit_val_batches=0"]
    command += [f"train_dataset.batches_per_epoch={STEPS}"]
    return Run(command, command, root)


def engine(number: signal.Signals, *, core: bool = True) -> Callable[[Run], None]:
    """Send the engine's core (or its API server) a signal while the run is in the phase, and let it go on."""

    def do(run: Run) -> None:
        for process in _engine_processes(run.pid, core=core):
            process.send_signal(number)
        run.go_on()

    return do


def _engine_processes(pid: int, *, core: bool) -> list[psutil.Process]:
    below = psutil.Process(pid).children(recursive=True)
    servers = [
        one for one in below if "vllm.entrypoints" in " ".join(one.cmdline()) and "watchdog" not in str(one.cmdline())
    ]
    found = [child for server in servers for child in server.children()] if core else servers
    assert found, [one.cmdline() for one in below]
    return found


REAL_FAULTS = (
    Fault("engine core killed", "rollout", "rollout:3", engine(signal.SIGKILL), real=True),
    Fault("engine server killed", "rollout", "rollout:3", engine(signal.SIGKILL, core=False), real=True),
    Fault("engine core stopped", "rollout", "rollout:3", engine(signal.SIGSTOP), real=True),
    Fault("engine core killed", "weight sync", "weight sync:3", engine(signal.SIGKILL), real=True),
    Fault("kill -9, with engine", "rollout", "rollout:3", kill(signal.SIGKILL), words=(EVERY,), code=KILLED,
          loses=BATCH, real=True),
    Fault("SIGTERM, with engine", "rollout", "rollout:3", kill(signal.SIGTERM), code=TERMINATED, loses=BATCH,
          real=True),
    Fault("Ctrl-C, with engine", "rollout", "rollout:3", kill(signal.SIGINT), code=INTERRUPTED, loses=BATCH, real=True),
)  # fmt: skip
