"""A file of task ids in the place of a split: which tasks it gives, what is refused, and that its content counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning.environment import check_split, load_tasks
from tau2_lightning.errors import ConfigError
from tau2_lightning.evaluation.resuming import training_stamp
from tau2_lightning.run.compose import load_config
from tau2_lightning.warm_start.digest import warm_start_digest

WORDS = ("domain=retail", "econfig.user=scripted", "mode=plan", "output_dir=outputs")


def listed(path: Path, *ids: str) -> str:
    path.write_text("\n".join(ids) + "\n")
    return str(path)


def test_a_file_gives_its_tasks_in_its_order(tmp_path: Path) -> None:
    split = listed(tmp_path / "easy.txt", "# the shortest", "7", "", "  3 ", "5")
    tasks = load_tasks("retail", split)
    assert [task.task_id for task in tasks] == ["7", "3", "5"]
    assert {task.split for task in tasks} == {"easy"}  # the name in metrics and files
    assert check_split("retail", split, "train_dataset.split") == []


def test_a_changed_file_gives_other_tasks(tmp_path: Path) -> None:
    file = tmp_path / "easy.txt"
    assert len(load_tasks("retail", listed(file, "1", "2"))) == 2
    assert len(load_tasks("retail", listed(file, "1", "2", "3"))) == 3


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["1", "none such"], "1 of 2 ids are not in the domain: none such"),
        (["1", "2", "1"], "names tasks twice: 1"),
        (["# nothing"], "names no task"),
        (None, "cannot be read"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, lines: list[str] | None, told: str) -> None:
    split = listed(tmp_path / "own.txt", *lines) if lines is not None else str(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match="valid_dataset.split") as refusal:
        load_config([*WORDS, f"valid_dataset.split={split}"])
    assert told in str(refusal.value) and "train_dataset.split" not in str(refusal.value)


def test_a_task_that_needs_a_user_is_refused_in_solo_mode(tmp_path: Path) -> None:
    solo = {task.task_id for task in load_tasks("mock", "base", solo_mode=True)}
    other = next(task.task_id for task in load_tasks("mock", "base") if task.task_id not in solo)
    split = listed(tmp_path / "own.txt", *sorted(solo), other)
    (found,) = check_split("mock", split, "train_dataset.split", solo_mode=True)
    assert f"1 of its tasks cannot be played solo, such as {other}" in found.problem
    assert check_split("mock", split, "train_dataset.split") == []


def test_an_unknown_split_is_refused_and_files_are_offered() -> None:
    (found,) = check_split("retail", "easy", "train_dataset.split")
    assert "train, test, base" in found.remedy and "NAME.txt" in found.remedy


def test_stamp_and_warm_start_follow_the_content(tmp_path: Path) -> None:
    file = tmp_path / "easy.txt"

    def seen(*ids: str) -> tuple[str, str]:
        config = load_config([*WORDS, f"train_dataset.split={listed(file, *ids)}"])
        return training_stamp(config)["domains"]["retail"]["tasks"], warm_start_digest(config, None)

    first, again, other = seen("1", "2"), seen("1", "2"), seen("1", "3")
    assert first == again
    assert first[0] != other[0] and first[1] != other[1]
