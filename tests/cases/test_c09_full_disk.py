"""C9: a full or read-only disk is named; what was half-written is removed, and older checkpoints are as they were."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch.distributed.checkpoint import FileSystemWriter

from tau2_lightning.errors import ConfigError, InfrastructureFault
from tau2_lightning.launch.manifest import damage
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tau2_lightning.run.opening import open_run
from tau2_lightning.strategy.saving import remove_leftovers
from tests.cases.runs import Runs
from tests.strategy.test_saving import save, stored

Usage = namedtuple("Usage", "total used free")


def fails(monkeypatch: pytest.MonkeyPatch, number: int, *, hidden: bool) -> None:
    """Writing fails in the middle of a file; ``hidden``: as torch's writer then ends that file."""

    def write(self: Any, *args: Any) -> Any:
        (Path(self.path) / "__0_0.distcp").write_bytes(b"half")
        try:
            raise OSError(number, os.strerror(number))
        finally:
            if hidden:
                raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(FileSystemWriter, "write_data", write)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("number", "named"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the file system is read-only"), (errno.EDQUOT, "quota")],
)
def test_c09_the_disks_own_error_is_named_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, named: str, background: bool, hidden: bool
) -> None:
    from tau2_lightning.strategy.saving import CheckpointSaver

    saver = CheckpointSaver(background=background)
    save(saver, tmp_path / "1.ckpt", 1.0)
    saver.wait()
    with monkeypatch.context() as patch:
        fails(patch, number, hidden=hidden)
        with pytest.raises(InfrastructureFault, match=rf"2\.ckpt could not be written: .*{named}"):
            save(saver, tmp_path / "2.ckpt", 2.0)
            saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["1.ckpt"]
    assert stored(tmp_path / "1.ckpt") == 1.0 and damage(tmp_path / "1.ckpt") is None


def test_c09_room_is_looked_for_before_a_save_and_the_run_says_what_it_needs(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs("trainer.max_epochs=1")
    before = sum(path.stat().st_size for path in runs.checkpoints.rglob("*"))
    used = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 17 << 20))
    assert exit_code(lambda: bool(runs("ckpt_path=last"))) == 1
    told = capsys.readouterr().err
    assert "checkpoint: disk_full: " in told and "its disk has 17.0 MiB left" in told
    assert "ckpt_path=last" in told, "it must say how to go on"
    assert runs.kept() == ["step2.ckpt"]
    assert sum(path.stat().st_size for path in runs.checkpoints.rglob("*")) == before
    monkeypatch.setattr(shutil, "disk_usage", used)
    assert runs("ckpt_path=last").published == [2, 3, 4], "with room again it goes on from the one before"


def test_c09_what_a_kill_left_in_the_middle_of_a_save_does_not_stay(tmp_path: Path) -> None:
    for name in ("a.ckpt.partial", "b.ckpt", "b.ckpt.old", "c.ckpt.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    remove_leftovers(tmp_path)
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "b.ckpt": "b.ckpt",
        "c.ckpt": "c.ckpt.old",  # the kill came between the two renames: it is the only whole one
    }


@pytest.mark.parametrize("key", ["output_dir", "cache_dir"])
def test_c09_a_folder_that_cannot_be_written_is_one_error_before_anything_starts(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below /proc nobody can make a folder, root included."""
    words = ["domain=mock", f"output_dir={tmp_path}", f"cache_dir={tmp_path}", f"{key}=/proc/none/of/this"]

    def start() -> int:
        with open_run(load_config(words, check=False)):
            return 0

    assert exit_code(start) == 2
    assert f"{key}='/proc/none/of/this'" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=f"{file} is no folder"):
        load_config([*words[:3], f"{key}={file}/below"])


def test_c09_a_disk_that_is_full_at_the_first_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    config = load_config(["domain=mock", f"output_dir={tmp_path}"], check=False)
    with pytest.raises(ConfigError, match="run folder .* cannot be written: No space left on device"):
        RunFolder.create(config)


@pytest.mark.parametrize("validates", [False, True])
def test_c09_where_the_metrics_cannot_be_written_complete_steps_are_saved_and_no_epoch_is_left_out(
    validates: bool, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last batch of the first epoch, and before its validation."""
    words = ["trainer.checkpoint_every_n_epochs=9"]
    if validates:
        words += ["trainer.limit_val_batches=1", "trainer.validate_before=false", "trainer.validate_every_n_epochs=1"]

    def full(writer: ExperimentWriter) -> None:
        if any(row.get("step") == 1 for row in writer.metrics):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_metrics(writer)

    save_metrics = ExperimentWriter.save
    with monkeypatch.context() as patch:
        patch.setattr(ExperimentWriter, "save", full)
        with pytest.raises(OSError, match="No space left on device"):
            runs(*words)
    assert runs.kept() == ["step2.ckpt"]
    again = runs("ckpt_path=last", *words)
    assert again.published == [2, 3, 4] and again.evaluated == (3 if validates else 0)
