"""The order in which training tasks are drawn: stratified, shuffled by seed, resumable."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from .settings import TaskRef


class TaskSampler:
    """An endless iterator over tasks: takes strata in turn, and draws from each without replacement until it is empty.

    Stratifying by ticket makes every batch a mixture of all kinds of problems, although their task counts differ
    widely. The order depends on ``seed`` alone; ``state_dict`` holds the number of tasks drawn, so that a resumed run
    continues there. Tasks that were drawn and not trained on can be put back: they come first. Raises ValueError
    without tasks.
    """

    def __init__(self, tasks: Sequence[TaskRef], *, seed: int) -> None:
        if not tasks:
            raise ValueError("no tasks to sample from")
        self._strata: dict[str, list[TaskRef]] = {}
        for task in sorted(tasks, key=lambda task: task.task_id):
            self._strata.setdefault(task.stratum, []).append(task)
        self._seed = seed
        self._reset()

    def _reset(self) -> None:
        self.drawn = 0
        self._again: deque[TaskRef] = deque()
        self._random = random.Random(self._seed)
        self._queues: dict[str, list[TaskRef]] = {name: [] for name in self._strata}

    def __iter__(self) -> TaskSampler:
        return self

    def __next__(self) -> TaskRef:
        if self._again:
            return self._again.popleft()
        names = sorted(self._strata)
        name = names[self.drawn % len(names)]
        queue = self._queues[name]
        if not queue:
            queue.extend(self._random.sample(self._strata[name], len(self._strata[name])))
        self.drawn += 1
        return queue.pop()

    def put_back(self, tasks: Sequence[TaskRef]) -> None:
        """Hand out ``tasks`` again, before any other and in this order."""
        self._again.extendleft(reversed(tasks))

    def state_dict(self, unfinished: Sequence[TaskRef] = ()) -> dict[str, Any]:
        """What ``load_state_dict`` needs to continue here; ``unfinished`` tasks were drawn and must come again."""
        again = [task.task_id for task in (*unfinished, *self._again)]
        return {"drawn": self.drawn} | ({"again": again} if again else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the order up to the saved position. Raises KeyError for an unfinished task that is unknown."""
        self._reset()
        for _ in range(int(state["drawn"])):
            next(self)
        known = {task.task_id: task for tasks in self._strata.values() for task in tasks}
        self.put_back([known[task_id] for task_id in state.get("again", ())])
