"""A substitute for `RolloutService`: it returns given groups and records publications, without episodes or engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.environment import TaskRef
from tau2_lightning.rollout.collect.collector import Collection, CollectPlan
from tau2_lightning.rollout.collect.progress import Progress
from tau2_lightning.rollout.collect.validation import Part, PlayedPart
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout.service import RolloutService
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.parity import ParityReport
from tau2_lightning.rollout.weights.sync_round import SyncReport
from tau2_lightning.run.compose import load_config
from tau2_lightning.trajectory import EpisodeOutcome, Group, Rollout, Trajectory, Turn

SECONDS = {"gather": 0.1, "write": 0.2, "send": 0.0, "pause": 0.3, "load": 0.4, "resume": 0.6, "total": 1.6}


def group(number: int, rewards: Sequence[float]) -> Group:
    """A group of one-turn episodes, random tokens below 200."""
    rng = np.random.default_rng(number)
    rollouts = []
    for sample, reward in enumerate(rewards):
        size = int(rng.integers(6, 12))
        row = Trajectory.of(
            rng.integers(5, 200, size).astype(np.int32), np.full(size, -5.5, np.float32),
            np.where(np.arange(size) > 2, 0, -1).astype(np.int32), (Turn(3, size),),
        )  # fmt: skip
        rollouts.append(Rollout(f"t{number}", str(number), sample, reward, (row,)))
    return Group(str(number), f"t{number}", tuple(rollouts))


class FakeService:
    """Returns ``batches`` in turn, repeatedly; every validation episode is solved."""

    def __init__(self, *batches: Sequence[Group]) -> None:
        self._batches = cycle(batches)
        self.progress, self.engine_idle, self.waits = Progress(), 0.0, ""
        self.engine_load: dict[str, float] = {}
        self.timeout: float | None = None  # of the newest validation
        self.published: list[int] = []
        self.evaluated = 0  # validations of a domain
        self.sampling: dict[str, float] = {}  # of the newest validation
        self.started = self.ended = self.closed = False
        self.failed: list[FailedAttempt] = []

    def start(self) -> None:
        self.started = True

    def whereabouts(self) -> list[str]:
        return [self.progress.describe()]

    def collect(self, tasks: Iterator[TaskRef], plan: CollectPlan) -> Collection:
        return Collection(tuple(self.groups_of([next(tasks) for _ in range(plan.n_groups)], plan)))

    def groups_of(self, tasks: Sequence[TaskRef], plan: CollectPlan) -> Sequence[Group]:
        """The groups of the batch that ``tasks`` were drawn for."""
        return next(self._batches)

    def take_retried(self) -> Counter[str]:
        return Counter()

    def take_failed(self, purpose: str, groups: object = None) -> list[FailedAttempt]:
        taken = [one for one in self.failed if one.purpose == purpose]
        self.failed = [one for one in self.failed if one.purpose != purpose]
        return taken

    def evaluate(self, parts: Sequence[Part]) -> list[PlayedPart]:
        self.evaluated += len(parts)
        self.timeout, self.sampling = parts[0].timeout, dict(parts[0].sampling)
        return [self.validated(part) for part in parts]

    def validated(self, part: Part) -> PlayedPart:
        """What comes of one domain."""
        solved = [EpisodeOutcome(t.task_id, 1.0, "agent_stop", 2, 1, 0, False, False, "none") for t in part.tasks]
        rollouts = [Rollout(o.task_id, o.task_id, i, 1.0, (), o) for o in solved for i in range(part.num_trials)]
        return PlayedPart(rollouts, Counter())

    def publish(self, version: int, buckets: Iterator[list[tuple[str, Tensor]]]) -> SyncReport:
        self.published.append(version)
        self.take(dict(chain.from_iterable(buckets)))
        return SyncReport(version, 1234, dict(SECONDS))

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Receive the published weights."""

    def publish_adapter(self, version: int, folder: Path) -> SyncReport:
        self.published.append(version)
        return SyncReport(version, 0, {"load": 0.4, "total": 0.4})

    def opening(self) -> list[int]:
        return list(range(5, 69))

    def check_parity(self, guard: GuardRows, expected: Sequence[Sequence[float]]) -> ParityReport:
        assert [len(values) for values in expected] == [len(at) for at in guard.positions]
        return ParityReport(max=0.0, p99=0.0, mean=0.0, tokens=1)

    def while_collecting(self, read: Callable[[list[TaskRef]], Any]) -> Any:
        return read([])

    def end_collection(self) -> list[TaskRef]:
        self.ended = True
        return []

    def close(self) -> None:
        self.closed = True


def small_config(*words: str) -> RunConfig:
    """A configuration of the mock domain that needs no engine."""
    return load_config(["domain=mock", "trainer.progress=off", "logger=csv", *words], check=False)


def data_with(
    service: FakeService, config: RunConfig, policy: str | Path, algorithm: PolicyGradient, folder: Path
) -> Tau2DataModule:
    """The real datamodule on ``service``; nothing is started."""
    data = Tau2DataModule(config, policy, algorithm, run_dir=folder)
    data.rollouts.service = cast("RolloutService", service)
    return data
