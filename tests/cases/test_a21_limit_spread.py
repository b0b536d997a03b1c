"""A21: ``valid_dataset.limit=10`` on telecom is spread over the kinds of issues, the same every time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tau2_lightning.algorithm import GRPO
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.environment import TaskRef
from tau2_lightning.run.compose import load_config


def validated(*words: str) -> list[TaskRef]:
    """The validation tasks of a run with the overrides ``words``."""
    data = Tau2DataModule(load_config(["domain=telecom", *words]), "nowhere", GRPO(), run_dir=Path("unused"))
    (plan,) = data.val_dataloader()
    return list(plan.tasks)


def kinds(tasks: list[TaskRef]) -> Counter[str]:
    return Counter(task.task_id[1:].split("]")[0] for task in tasks)


def test_a21_ten_tasks_are_of_all_kinds_of_issues() -> None:
    whole = validated()
    assert len(whole) == 40 and min(kinds(whole[:10]).get(kind, 0) for kind in kinds(whole)) == 0, (
        "the first ten tasks already hold all kinds, so the test shows nothing"
    )
    found = kinds(validated("valid_dataset.limit=10"))
    assert set(found) == {"mms_issue", "mobile_data_issue", "service_issue"}
    assert max(found.values()) - min(found.values()) <= 1


def test_a21_the_same_every_time_and_a_larger_limit_adds_to_it() -> None:
    ten = validated("valid_dataset.limit=10", "seed=7")
    assert ten == validated("valid_dataset.limit=10")
    assert validated("valid_dataset.limit=20")[:10] == ten
