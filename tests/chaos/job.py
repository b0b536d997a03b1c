"""The main job without an engine, with a fault planted in it: ``python -m tests.chaos.job POLICY ROOT PLANT WORD...``.

Trainer, policy, files, signals and deadlines are real. The rollouts are made up (`tests.fake_service`), and follow from
the step and its tasks, as real ones do with one seed: a resumed run can be compared with an undisturbed one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import termios
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import train
from tau2_lightning.environment import TaskRef
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code, leave
from tau2_lightning.trajectory import Group
from tests.cases.runs import WORDS
from tests.fake_service import FakeService, group
from tests.jobs import own_words

Plant = Callable[[pytest.MonkeyPatch], None]
# Writes on where it was started to what it reads; `faults.reader_gone` finds it by this text.
READER = """
import os, sys
try:
    while text := os.read(int(sys.argv[1]), 65536):
        os.write(1, text)
except OSError:
    pass  # the other end of a terminal is closed
"""


class Repeatable(FakeService):
    """A batch follows from its step and its tasks."""

    def groups_of(self, tasks: Sequence[TaskRef], plan: CollectPlan) -> Sequence[Group]:
        number = zlib.crc32(" ".join([str(plan.step), *(task.task_id for task in tasks)]).encode())
        return [group(number, [1.0, 0.0, 0.0, 1.0])]


def nothing(patch: pytest.MonkeyPatch) -> None:
    """No fault."""


def nan_gradient(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the third batch is NaN."""
    _loss(patch, lambda version: version == 2)


def nan_gradients(patch: pytest.MonkeyPatch) -> None:
    """Every gradient from the third batch on is NaN."""
    _loss(patch, lambda version: version >= 2)


def nan_weight(patch: pytest.MonkeyPatch) -> None:
    """One weight is NaN after the third step, as faulty memory would leave it."""
    import torch

    right = GRPOModule.training_step

    def step(module: GRPOModule, batch: Any, batch_idx: int) -> None:
        right(module, batch, batch_idx)
        if module.weights_version == 3 and module.policy is not None:
            with torch.no_grad():
                next(module.policy.parameters()).view(-1)[5] = float("nan")

    patch.setattr(GRPOModule, "training_step", step)


def full_disk(patch: pytest.MonkeyPatch) -> None:
    """The disk is full when the checkpoint of the third step is written."""
    _write_fails(patch, errno.ENOSPC)


def read_only(patch: pytest.MonkeyPatch) -> None:
    """The file system has become read-only when the checkpoint of the third step is written."""
    _write_fails(patch, errno.EROFS)


def clock_step(patch: pytest.MonkeyPatch) -> None:
    """The system's clock goes back by a day after the second batch, and jumps forward by a week after the third."""
    right, batches = time.time, [0]
    collect = FakeService.collect

    def collected(service: Any, tasks: Any, plan: Any) -> Any:
        batches[0] += 1
        return collect(service, tasks, plan)

    patch.setattr(FakeService, "collect", collected)
    patch.setattr(time, "time", lambda: right() + {3: -86_400.0}.get(batches[0], 7 * 86_400.0 * (batches[0] > 3)))


def out_of_memory(patch: pytest.MonkeyPatch) -> None:
    """The GPU has no memory for the loss of the fourth batch."""
    import torch

    right = GRPOModule._loss

    def loss(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
        if module.weights_version == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return right(module, outputs, microbatch)

    patch.setattr(GRPOModule, "_loss", loss)


def full_log(patch: pytest.MonkeyPatch) -> None:
    """The log of the run is on a full disk, which it is written to about a NaN gradient."""
    create = RunFolder.create

    def created(*args: Any) -> RunFolder:
        folder = create(*args)
        (folder.logs / "run-rank0.log").symlink_to("/dev/full")
        return folder

    patch.setattr(RunFolder, "create", created)
    nan_gradient(patch)


def full_record(patch: pytest.MonkeyPatch) -> None:
    """The disk is full when the numbers of the third step are written."""
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter

    right = ExperimentWriter.save

    def save(writer: Any) -> None:
        if any(row.get("step") == 2 for row in writer.metrics):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        right(writer)

    patch.setattr(ExperimentWriter, "save", save)


def piped(patch: pytest.MonkeyPatch) -> None:
    """The screen is read by another process, as behind ``| tee``."""
    reading, writing = os.pipe()
    _read_by_another(reading, writing)


def terminal(patch: pytest.MonkeyPatch) -> None:
    """The screen is a terminal of this process's own, whose other end another process holds, as sshd does."""
    holding, screen = os.openpty()
    fcntl.ioctl(screen, termios.TIOCSCTTY, 0)
    _read_by_another(holding, screen)


def _read_by_another(reading: int, writing: int) -> None:
    """Everything that this process prints into ``writing`` goes through a process that reads it from ``reading``."""
    command = [sys.executable, "-c", READER, str(reading)]
    subprocess.Popen(command, pass_fds=[reading], start_new_session=True)
    os.close(reading)
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(writing)


def engine_gone(patch: pytest.MonkeyPatch) -> None:
    """The engine is given up in the third batch."""
    _collect_fails(patch, InfrastructureFault("engine", "crash", "engine 0 died 6 times in 3600 s"))


def user_refused(patch: pytest.MonkeyPatch) -> None:
    """The user's server refuses every connection in the third batch."""
    _collect_fails(patch, InfrastructureFault("user", "connection", "Connection refused"))


def defect(patch: pytest.MonkeyPatch) -> None:
    """A defect of this program in the third batch."""
    _collect_fails(patch, ZeroDivisionError("division by zero"))


def _collect_fails(patch: pytest.MonkeyPatch, error: Exception) -> None:
    right = FakeService.collect

    def collect(service: Any, tasks: Any, plan: Any) -> Any:
        if service.published[-1:] == [2]:
            raise error
        return right(service, tasks, plan)

    patch.setattr(FakeService, "collect", collect)


def _write_fails(patch: pytest.MonkeyPatch, number: int) -> None:
    from torch.distributed.checkpoint import FileSystemWriter

    right = FileSystemWriter.write_data

    def write(writer: Any, *args: Any) -> Any:
        if "step3" not in str(writer.path):
            return right(writer, *args)
        (Path(writer.path) / "__0_0.distcp").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    patch.setattr(FileSystemWriter, "write_data", write)


def _loss(patch: pytest.MonkeyPatch, at: Callable[[int], bool]) -> None:
    right = GRPOModule._loss

    def loss(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
        found, metrics = right(module, outputs, microbatch)
        return (found * float("nan"), metrics) if at(module.weights_version) else (found, metrics)

    patch.setattr(GRPOModule, "_loss", loss)


PLANTS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        nothing, nan_gradient, nan_gradients, nan_weight, full_disk, read_only, clock_step, engine_gone, user_refused,
        defect, out_of_memory, full_log, full_record, piped, terminal,
    )
}  # fmt: skip


def main(policy: str, root: str, plant: str, *words: str) -> int:
    patch = pytest.MonkeyPatch()
    service = Repeatable()
    patch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)
    patch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: service)
    PLANTS[plant](patch)
    cache = f"cache_dir={Path(root) / 'cache'}"
    return exit_code(
        lambda: train.run(load_config([*own_words(Path(policy), Path(root)), *WORDS, cache, *words], check=False))
    )


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
