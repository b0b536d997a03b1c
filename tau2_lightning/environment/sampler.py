"""The order in which training tasks are drawn: domains by weight, stratified, shuffled by seed, resumable."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .settings import TaskRef
from .shares import turns


class TaskSampler:
    """An endless iterator over tasks: takes domains in turn by ``weights``, strata of a domain in turn, and draws from
    each stratum without replacement until it is empty.

    Stratifying by ticket makes every batch a mixture of all kinds of problems, although their task counts differ
    widely. After any number of draws each domain has had its share of them, rounded up or down (see `turns`); the order
    within a domain is that of a run of this domain alone. Without ``weights`` all domains have equal ones. The order
    depends on ``seed`` alone; ``state_dict`` holds the number of tasks drawn, so that a resumed run continues there.
    Tasks that were drawn and not trained on can be put back: they come first. Raises ValueError without tasks, and for
    weights of other domains than those of the tasks.
    """

    def __init__(self, tasks: Sequence[TaskRef], *, seed: int, weights: Mapping[str, float] | None = None) -> None:
        if not tasks:
            raise ValueError("no tasks to sample from")
        by_domain: dict[str, list[TaskRef]] = {}
        for task in tasks:
            by_domain.setdefault(task.domain, []).append(task)
        self._weights = dict(weights or dict.fromkeys(by_domain, 1.0))
        if self._weights.keys() != by_domain.keys():
            raise ValueError(f"weights of {sorted(self._weights)} for tasks of {sorted(by_domain)}")
        self._tasks, self._seed = by_domain, seed
        self._reset()

    def _reset(self) -> None:
        self.drawn = 0
        self._again: deque[TaskRef] = deque()
        self._turns = turns(self._weights)
        self._orders = {name: _Order(tasks, self._seed) for name, tasks in self._tasks.items()}

    def __iter__(self) -> TaskSampler:
        return self

    def __next__(self) -> TaskRef:
        if self._again:
            return self._again.popleft()
        self.drawn += 1
        return next(self._orders[next(self._turns)])

    def put_back(self, tasks: Sequence[TaskRef]) -> None:
        """Hand out ``tasks`` again, before any other and in this order."""
        self._again.extendleft(reversed(tasks))

    def state_dict(self, unfinished: Sequence[TaskRef] = ()) -> dict[str, Any]:
        """What ``load_state_dict`` needs to continue here; ``unfinished`` tasks were drawn and must come again."""
        again = [[task.domain, task.task_id] for task in (*unfinished, *self._again)]
        return {"drawn": self.drawn} | ({"again": again} if again else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay the order up to the saved position. Raises ConfigError for an unfinished task that is unknown."""
        self._reset()
        for _ in range(int(state["drawn"])):
            next(self)
        self.put_back([self._known(*_identity(saved, self._tasks)) for saved in state.get("again", ())])

    def _known(self, domain: str, task_id: str) -> TaskRef:
        for task in self._tasks.get(domain, ()):
            if task.task_id == task_id:
                return task
        problem = f"the checkpoint has an unfinished task of {domain} that is not among the training tasks"
        remedy = "Resume with the same tasks, or set train_dataset.accept_changed_tasks=true"
        raise ConfigError([Violation("train_dataset.split", task_id, problem, remedy)])


class _Order:
    """The endless order of the tasks of one domain."""

    def __init__(self, tasks: Sequence[TaskRef], seed: int) -> None:
        self._strata: dict[str, list[TaskRef]] = {}
        for task in sorted(tasks, key=lambda task: task.task_id):
            self._strata.setdefault(task.stratum, []).append(task)
        self._names = sorted(self._strata)
        self._random = random.Random(seed)
        self._queues: dict[str, list[TaskRef]] = {name: [] for name in self._names}
        self._drawn = 0

    def __next__(self) -> TaskRef:
        name = self._names[self._drawn % len(self._names)]
        queue = self._queues[name]
        if not queue:
            queue.extend(self._random.sample(self._strata[name], len(self._strata[name])))
        self._drawn += 1
        return queue.pop()


def _identity(saved: Any, domains: Mapping[str, object]) -> tuple[str, str]:
    """(domain, task id) of a saved task; checkpoints of earlier versions hold the id alone, of their only domain."""
    if isinstance(saved, str):
        return next(iter(domains)), saved
    domain, task_id = saved
    return str(domain), str(task_id)
