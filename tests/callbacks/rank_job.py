"""One rank of a job that adds numbers over gloo: ``python -m tests.callbacks.rank_job RANK WORLD PORT ROOT DO SLOW``.

After a second, the last rank does what ``DO`` says: it is stopped, killed, raises, hangs outside of a collective, or
goes on. Writing a file of evidence takes ``SLOW`` seconds, as on a network's disk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tau2_lightning.callbacks.ranks import RankWatch
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stacks import write_stacks
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.telemetry.phases import PhaseClock

RANK_SECONDS, GRACE_SECONDS = 2.0, 1.0


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def slow_disk(seconds: float) -> None:
    """Every text and every folder of stacks arrives ``seconds`` late."""
    right_text, right_stacks, patch = Path.write_text, write_stacks, pytest.MonkeyPatch()

    def write_text(path: Path, *args: Any, **options: Any) -> int:
        time.sleep(seconds)
        return right_text(path, *args, **options)

    def stacks(*args: Any) -> None:
        time.sleep(seconds)
        right_stacks(*args)

    patch.setattr(Path, "write_text", write_text)
    patch.setattr("tau2_lightning.callbacks.ranks.write_stacks", stacks)


def main(rank: int, world: int, port: int, root: Path, do: str) -> int:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(minutes=30)
    )
    clock, stops = PhaseClock(), StopSignals(GRACE_SECONDS)
    config: Any = SimpleNamespace(trainer=SimpleNamespace(rank_timeout=RANK_SECONDS))
    watch = RankWatch(RunFolder(root), config, stops)
    strategy = SimpleNamespace(launcher=None)
    trainer: Any = SimpleNamespace(
        world_size=world, global_rank=rank, strategy=strategy, datamodule=SimpleNamespace(clock=clock)
    )
    module: Any = None
    watch.setup(trainer, module, "fit")
    began = time.monotonic()
    try:
        with clock.phase("train"):
            while time.monotonic() - began < 6.0 or do != "nothing":
                if rank == world - 1 and time.monotonic() - began > 1.0:
                    if do in ("SIGSTOP", "SIGKILL"):
                        os.kill(os.getpid(), getattr(signal, do))
                    elif do == "raise":
                        out_of_memory()
                numbers = torch.ones(3)
                dist.all_reduce(numbers)
                assert numbers[0] == world
                time.sleep(0.01)
                done = torch.tensor([float(do == "nothing" and time.monotonic() - began > 5.0)])
                dist.all_reduce(done)
                if done > 0:
                    break
        watch.teardown(trainer, module, "fit")
        if rank == world - 1:
            time.sleep(2.5 * RANK_SECONDS)  # a rank that is done later than the others
    except RuntimeError as error:
        watch.on_exception(trainer, module, error)
        print(f"rank {rank} ends: {stops.lost or error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    given_rank, given_world, given_port, given_root, given_do, slow = sys.argv[1:]
    if float(slow):
        slow_disk(float(slow))
    code = main(int(given_rank), int(given_world), int(given_port), Path(given_root), given_do)
    sys.stderr.flush()
    os._exit(code)
