"""A limit takes tasks from all kinds in turn; a larger limit only adds tasks to a smaller one."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest

from tau2_lightning.environment import TaskRef, load_tasks
from tau2_lightning.environment.spread import kind_of, spread
from tests.environment.helpers import unjudged


@pytest.mark.parametrize("domain", ["telecom", "airline", "retail", "mock"])
def test_a_larger_limit_continues_a_smaller_one_and_no_task_is_lost(domain: str) -> None:
    tasks = load_tasks(domain, "test")
    orders = [spread(tasks, n, unjudged(domain)) for n in range(1, len(tasks) + 3)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(orders))
    assert set(orders[-1]) == set(tasks) and len(orders[-1]) == len(tasks)
    assert spread(tasks, None, unjudged(domain)) == tasks
    assert spread(tasks[::-1], 5, unjudged(domain)) == spread(tasks, 5, unjudged(domain)), (
        "the order of the split must not matter"
    )


@pytest.mark.parametrize("domain", ["airline", "retail"])
def test_kinds_of_other_domains_are_the_first_change_that_the_gold_solution_makes(domain: str) -> None:
    tasks = load_tasks(domain, "test")
    settings = unjudged(domain)

    def kinds_of(tasks: Sequence[TaskRef]) -> Counter[str]:
        return Counter(kind_of(task, settings) for task in tasks)

    kinds = kinds_of(tasks)
    assert len(kinds) > 3
    chosen = kinds_of(spread(tasks, len(kinds), settings))
    assert set(chosen.values()) == {1}, "with as many tasks as kinds, each kind must come once"
    assert {kind for kind, _ in kinds.most_common(2)} <= set(kinds_of(spread(tasks, 3, settings)))
