"""Names of the files of rollouts, and the bound on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning.config.kept import KeptBound
from tau2_lightning.rollout_files.names import REPLAYED, FileName, kept_files, too_many


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (FileName("train", 12), "train-000012.parquet"),
        (FileName("validate", 3, 2, 4), "validate-000003-v02-s4.parquet"),
        (FileName("train", 1_234_567, rank=3), "train-1234567-r003.parquet"),
        (FileName("scores", 0, rank=15), "scores-000000-r015.parquet"),
    ],
)
def test_a_name_and_its_parts(name: FileName, text: str) -> None:
    assert str(name) == text and FileName.of(Path(text)) == name


def test_other_files_have_no_parts() -> None:
    assert FileName.of(Path("vocabulary.parquet")) is None
    assert FileName.of(Path("train-000012.parquet.tmp")) is None


def fill(folder: Path, steps: int, size: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(steps):
        (folder / str(FileName("train", step))).write_bytes(b"x" * size)
        (folder / str(FileName("scores", step))).write_bytes(b"x" * 10)
    (folder / str(FileName("validate", 2, 1))).write_bytes(b"x" * size)


def test_a_validation_comes_before_the_batch_of_its_step(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    assert [(name.kind, name.step) for name, _ in kept_files(tmp_path)] == [
        ("train", 0), ("train", 1), ("validate", 2), ("train", 2),
    ]  # fmt: skip


def test_a_bound_of_steps_removes_older_ones(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    gone = sorted(path.name for path in too_many(tmp_path, KeptBound(steps=3)))
    assert gone == sorted(
        [str(FileName(kind, step)) for kind in ("train", "scores") for step in (0, 1, 2)]
        + [str(FileName("validate", 2, 1))]
    )


def test_a_bound_of_bytes_removes_the_oldest_and_keeps_the_newest_step(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    gone = {path.name for path in too_many(tmp_path, KeptBound(size=250))}
    left = {path.name for path in tmp_path.iterdir()} - gone
    assert {str(FileName("train", step)) for step in (4, 5)} <= left and str(FileName("train", 3)) in gone
    only = {path.name for path in too_many(tmp_path, KeptBound(size=1))}
    assert {path.name for path in tmp_path.iterdir()} - only == {str(FileName(kind, 5)) for kind in ("train", "scores")}


def test_replayed_files_go_first(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    fill(tmp_path / REPLAYED, 2)
    gone = too_many(tmp_path, KeptBound(size=330))
    assert gone and {path.parent for path in gone} == {tmp_path / REPLAYED}


def test_without_a_bound_everything_stays(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    assert too_many(tmp_path, KeptBound()) == []
