"""A limit takes from every kind of task in turn; a larger one adds to a smaller one."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.spread import kind_of, spread
from tests.environment.helpers import RETAIL


@pytest.mark.parametrize("domain", ["telecom", "airline", RETAIL, "mock"])
def test_a_larger_limit_continues_a_smaller_one_and_no_task_is_lost(domain: str) -> None:
    tasks = load_tasks(domain, "test")
    orders = [spread(tasks, n) for n in range(1, len(tasks) + 3)]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(orders))
    assert set(orders[-1]) == set(tasks) and len(orders[-1]) == len(tasks)
    assert spread(tasks, None) == tasks
    assert spread(tasks[::-1], 5) == spread(tasks, 5), "the order of the split must not matter"


@pytest.mark.parametrize("domain", ["airline", RETAIL])
def test_kinds_of_other_domains_are_the_first_change_that_the_gold_solution_makes(domain: str) -> None:
    tasks = load_tasks(domain, "test")
    kinds = Counter(map(kind_of, tasks))
    assert len(kinds) > 3
    chosen = Counter(map(kind_of, spread(tasks, len(kinds))))
    assert set(chosen.values()) == {1}, "as many tasks as kinds: one of each"
    assert {kind for kind, _ in kinds.most_common(2)} <= {kind_of(task) for task in spread(tasks, 3)}
