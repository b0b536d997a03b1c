"""Checkpoints written in the background: crashes, later changes of the weights, and deadlines."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault
from tau2_lightning.strategy.checkpoint import _slot_like, load, read_meta
from tau2_lightning.strategy.saving import CheckpointSaver
from tests.strategy.distributed import fork


def save(saver: CheckpointSaver, folder: Path, value: float) -> torch.Tensor:
    weight = torch.full((64,), value)
    saver.save(folder, {"weight": weight}, [], {}, {"step": value})
    return weight


def stored(folder: Path) -> float:
    weight = torch.zeros(64)
    load(folder, {"weight": weight}, [], {}, {})
    assert bool((weight == weight[0]).all())
    return float(weight[0])


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until this is set."""
    event, write = threading.Event(), FileSystemWriter.write_data

    def later(self: Any, *args: Any) -> Any:
        assert event.wait(30)
        return write(self, *args)

    monkeypatch.setattr(FileSystemWriter, "write_data", later)
    return event


def test_training_goes_on_and_what_it_changes_is_not_saved(tmp_path: Path, gate: threading.Event) -> None:
    saver, folder = CheckpointSaver(background=True), tmp_path / "a.ckpt"
    weight = save(saver, folder, 1.0)
    weight.fill_(5.0)  # the next optimizer step
    assert not folder.exists()
    gate.set()
    saver.wait()
    assert stored(folder) == 1.0 and read_meta(folder)["step"] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_in_the_foreground_it_is_there_at_once(tmp_path: Path) -> None:
    save(CheckpointSaver(), tmp_path / "a.ckpt", 2.0)
    assert stored(tmp_path / "a.ckpt") == 2.0


def test_how_an_optimizer_computes_is_not_the_checkpoints_matter(tmp_path: Path) -> None:
    """A checkpoint made on a GPU, by a fused optimizer, continues on a CPU, and the other way round."""

    def optimizer(fused: bool | None, lr: float) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.ones(64))
        return weight, torch.optim.AdamW([weight], lr=lr, fused=fused)

    def step(weight: torch.nn.Parameter, adam: torch.optim.AdamW) -> None:
        weight.grad = weight.detach() - 3.0
        adam.step()

    weight, adam = optimizer(True, 0.1)
    step(weight, adam)
    CheckpointSaver().save(tmp_path / "a.ckpt", {"weight": weight}, [adam], {id(weight): "weight"}, {})
    again, other = optimizer(None, 0.5)
    load(tmp_path / "a.ckpt", {"weight": again}, [other], {id(again): "weight"}, {})
    assert other.param_groups[0]["lr"] == 0.1 and other.param_groups[0]["fused"] is None
    step(weight, adam)
    step(again, other)
    torch.testing.assert_close(again, weight)


@pytest.mark.parametrize("fused", [False, True])
def test_a_fused_optimizer_counts_its_steps_on_the_parameters_device(tmp_path: Path, fused: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    adam = torch.optim.AdamW([weight])
    weight.grad = torch.ones(4)
    adam.step()
    CheckpointSaver().save(tmp_path / "a.ckpt", {"weight": weight}, [adam], {id(weight): "weight"}, {})
    entries = FileSystemReader(tmp_path / "a.ckpt").read_metadata().state_dict_metadata
    elsewhere = torch.nn.Parameter(torch.ones(4, device="meta"))
    slots = []
    for name in ("step", "exp_avg"):
        entry = entries[f"optimizer_0.weight.{name}"]
        assert isinstance(entry, TensorStorageMetadata)
        slots.append(_slot_like(elsewhere, entry, fused=fused))
    step, average = slots
    assert step.device.type == ("meta" if fused else "cpu") and step.shape == ()
    assert average.device.type == "meta" and average.shape == (4,)


def test_the_one_before_is_removed_only_when_the_new_one_is_complete(tmp_path: Path, gate: threading.Event) -> None:
    """Lightning saves the new checkpoint and removes the old one immediately."""
    gate.set()
    saver, old, new = CheckpointSaver(background=True), tmp_path / "1.ckpt", tmp_path / "2.ckpt"
    save(saver, old, 1.0)
    saver.wait()
    gate.clear()
    save(saver, new, 2.0)
    saver.remove(old)
    assert stored(old) == 1.0 and not new.exists()
    gate.set()
    saver.wait()
    assert stored(new) == 2.0 and not old.exists()
    saver.remove(new)
    saver.remove(new)  # gone already
    assert list(tmp_path.iterdir()) == []


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: threading.Event) -> None:
    saver = CheckpointSaver(background=True)
    save(saver, tmp_path / "1.ckpt", 1.0)
    threading.Timer(0.2, gate.set).start()
    save(saver, tmp_path / "2.ckpt", 2.0)
    assert stored(tmp_path / "1.ckpt") == 1.0
    saver.wait()


def test_a_stuck_write_is_named(tmp_path: Path, gate: threading.Event) -> None:
    saver = CheckpointSaver(background=True, seconds=0.1)
    save(saver, tmp_path / "1.ckpt", 1.0)
    with pytest.raises(DeadlineExceeded, match=r"checkpoint: .*writing .*1\.ckpt in the background"):
        saver.wait()
    gate.set()


def test_a_failed_write_is_raised_and_the_one_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, old = CheckpointSaver(background=True), tmp_path / "1.ckpt"
    save(saver, old, 1.0)
    saver.wait()

    def full(self: Any, *args: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    save(saver, tmp_path / "2.ckpt", 2.0)
    saver.remove(old)
    with pytest.raises(InfrastructureFault, match="no space left"):
        saver.wait()
    assert stored(old) == 1.0
    with pytest.raises(ConfigError, match="no finished checkpoint"):
        read_meta(tmp_path / "2.ckpt")


@pytest.mark.parametrize("where", ["between files", "in a file"])
def test_ctrl_c_in_the_middle_of_a_write_stays_ctrl_c(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = CheckpointSaver()
    save(saver, tmp_path / "1.ckpt", 1.0)

    def interrupted(self: Any, *args: Any) -> Any:
        try:
            raise KeyboardInterrupt
        finally:
            if where == "in a file":  # as torch's writer ends a file of which less was written than it counted
                raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(FileSystemWriter, "write_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(saver, tmp_path / "2.ckpt", 2.0)
    assert stored(tmp_path / "1.ckpt") == 1.0


def dies(folder: str, replace: bool) -> None:
    """Save, save again in the background (elsewhere or in the same place), and be killed in the middle of writing."""
    torch.set_num_threads(1)
    saver, write, reached = CheckpointSaver(background=True), FileSystemWriter.write_data, threading.Event()
    save(saver, Path(folder) / "1.ckpt", 1.0)
    saver.wait()

    def half(self: Any, *args: Any) -> Any:
        write(self, *args).wait()
        reached.set()
        threading.Event().wait()

    writer: Any = FileSystemWriter
    writer.write_data = half
    save(saver, Path(folder) / ("1.ckpt" if replace else "2.ckpt"), 2.0)
    if not replace:
        saver.remove(Path(folder) / "1.ckpt")
    assert reached.wait(20)
    os._exit(9)


@pytest.mark.parametrize("replace", [False, True])
def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path, replace: bool) -> None:
    child = multiprocessing.get_context("fork").Process(target=dies, args=(str(tmp_path), replace))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert stored(tmp_path / "1.ckpt") == 1.0
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["1.ckpt"]
    save(CheckpointSaver(background=False), tmp_path / "2.ckpt", 3.0)  # the unfinished files do not interfere
    assert stored(tmp_path / "2.ckpt") == 3.0


def together(folder: str) -> list[float]:
    """Two ranks save shards in the background while their own collectives continue."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    sharded = distribute_tensor(torch.arange(10.0), mesh, [Shard(0)])
    saver = CheckpointSaver(background=True)
    for number in range(3):
        saver.save(Path(folder) / f"{number}.ckpt", {"x": sharded}, [], {}, {})
        sharded.add_(1)
        for _ in range(50):
            dist.all_reduce(torch.ones(3))
    saver.wait()
    dist.barrier()
    again = distribute_tensor(torch.zeros(10), mesh, [Shard(0)])
    firsts = []
    for number in range(3):
        load(Path(folder) / f"{number}.ckpt", {"x": again}, [], {}, {})
        firsts.append(float(again.full_tensor()[0]))
    return firsts


def test_ranks_save_beside_their_other_collectives(tmp_path: Path) -> None:
    assert fork(2, together, str(tmp_path)) == [[0.0, 1.0, 2.0]] * 2
