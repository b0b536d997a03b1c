"""A few tasks of many, spread evenly over their kinds and the same every time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

from .scoring import plan_of
from .settings import EnvironmentSettings, TaskRef
from .tasks import get_task


def spread(tasks: Sequence[TaskRef], limit: int | None, settings: EnvironmentSettings) -> tuple[TaskRef, ...]:
    """The first ``limit`` tasks when the kinds of `kind_of` take turns; all tasks in their own order without a limit.

    Kinds take turns from the most frequent to the rarest, equally frequent ones by name, and drop out when they have no
    task left. Within a kind the order is that of the SHA-256 digests of the task ids: arbitrary, but the same on every
    machine. So a smaller limit gives the beginning of what a larger one gives.
    """
    if limit is None:
        return tuple(tasks)
    kinds: dict[str, list[TaskRef]] = {}
    for task in tasks:
        kinds.setdefault(kind_of(task, settings), []).append(task)
    by_size = sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind))
    columns = [sorted(kinds[kind], key=lambda task: hashlib.sha256(task.task_id.encode()).digest()) for kind in by_size]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    return tuple(itertools.islice((task for task in rounds if task is not None), limit))


def kind_of(task: TaskRef, settings: EnvironmentSettings) -> str:
    """The kind of a task: in telecom the kind of issue that its id names (``mms_issue``, ``mobile_data_issue``,
    ``service_issue``); elsewhere the first gold action that changes something, or ``no change``.
    """
    if task.task_id.startswith("["):
        return task.task_id[1:].split("]")[0]
    criteria = get_task(task).evaluation_criteria
    types = plan_of(settings).tool_types
    for action in (criteria.actions if criteria is not None else None) or ():
        if getattr(types.get(action.name), "value", "") == "write":
            return str(action.name)
    return "no change"
