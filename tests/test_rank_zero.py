"""The tasks that a checkpoint holds: those of a batch that is not trained are drawn again by a resumed run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tau2_lightning.algorithm import GRPO
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.environment import TaskRef
from tau2_lightning.rollout.collect.collector import Collection, CollectPlan
from tests.fake_service import FakeService, data_with, group, small_config


class Accounts(FakeService):
    """Collects beside training: of each batch it tells the tasks, and one more is always in progress."""

    def __init__(self) -> None:
        super().__init__([group(0, [1.0, 0.0])])
        self.next: TaskRef | None = None

    def collect(self, tasks: Iterator[TaskRef], plan: CollectPlan) -> Collection:
        drawn = [self.next or next(tasks)]
        self.next = next(tasks)
        return replace(
            super().collect(iter(drawn), replace(plan, n_groups=1)),
            tasks={str(place): one for place, one in enumerate(drawn)},
        )

    def while_collecting(self, read: Callable[[list[TaskRef]], Any]) -> Any:
        return read([self.next] if self.next else [])


@pytest.fixture
def data_of(tmp_path: Path) -> Callable[..., Tau2DataModule]:
    def make(service: FakeService, *words: str) -> Tau2DataModule:
        data = data_with(service, small_config("train_dataset.batch_size=1", *words), tmp_path, GRPO(), tmp_path)
        data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(weights_version=0))  # type: ignore[assignment]
        data._started = True
        data.setup("fit")
        data.rollouts._tell = lambda played: None  # type: ignore[method-assign]
        return data

    return make


def trained(data: Tau2DataModule) -> None:
    """A step is complete: its weights have the next version."""
    module: Any = data.trainer and data.trainer.lightning_module
    module.weights_version += 1


def test_the_batch_of_a_step_that_breaks_off_is_drawn_again(data_of: Callable[..., Tau2DataModule]) -> None:
    data = data_of(FakeService([group(0, [1.0, 0.0])]))
    for version in range(2):
        data.rollouts.version = version
        data.rollouts.collect(data.sampler)
        assert data.state_dict()["sampler"] == {"drawn": version}, "a hung step may end here"
        trained(data)
        assert data.state_dict()["sampler"] == {"drawn": version + 1}
    data.trainer = None
    assert data.state_dict()["sampler"] == {"drawn": 2}


def test_beside_training_its_tasks_come_before_those_in_progress(data_of: Callable[..., Tau2DataModule]) -> None:
    data = data_of(Accounts(), "rollout.max_head_offpolicyness=1")
    first, second, third = (task.task_id for task, _ in zip(data_of(FakeService()).sampler, range(3), strict=False))
    data.rollouts.collect(data.sampler)
    assert data.state_dict()["sampler"] == {"drawn": 2, "again": [["mock", first], ["mock", second]]}
    trained(data)
    assert data.state_dict()["sampler"] == {"drawn": 2, "again": [["mock", second]]}
    data.rollouts.version = 1
    data.rollouts.collect(data.sampler)
    assert data.state_dict()["sampler"] == {"drawn": 3, "again": [["mock", second], ["mock", third]]}
