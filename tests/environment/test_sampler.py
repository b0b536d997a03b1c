"""Tasks are drawn from all strata in turn, without replacement, in an order that a resumed run continues."""

import itertools
from collections import Counter

import pytest

from tau2_lightning.environment import TaskRef
from tau2_lightning.environment.sampler import TaskSampler


def refs(**sizes: int) -> list[TaskRef]:
    return [TaskRef("d", "s", f"{name}{i}", False, name) for name, size in sizes.items() for i in range(size)]


def test_strata_take_turns_whatever_their_sizes():
    drawn = list(itertools.islice(TaskSampler(refs(a=100, b=3, c=10), seed=0), 30))
    assert Counter(task.stratum for task in drawn) == {"a": 10, "b": 10, "c": 10}


def test_no_task_repeats_before_its_stratum_is_used_up():
    drawn = [t.task_id for t in itertools.islice(TaskSampler(refs(a=7), seed=3), 14)]
    assert len(set(drawn[:7])) == 7
    assert len(set(drawn[7:])) == 7


def test_seed_decides_the_order():
    def order(seed):
        return [t.task_id for t in itertools.islice(TaskSampler(refs(a=20, b=20), seed=seed), 40)]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize("position", [0, 1, 5, 23])
def test_resumes_where_it_was(position):
    whole = TaskSampler(refs(a=5, b=9), seed=4)
    for _ in range(position):
        next(whole)
    resumed = TaskSampler(refs(a=5, b=9), seed=4)
    resumed.load_state_dict(whole.state_dict())
    assert list(itertools.islice(resumed, 20)) == list(itertools.islice(whole, 20))


def test_no_tasks_is_an_error():
    with pytest.raises(ValueError, match="no tasks"):
        TaskSampler([], seed=0)


def test_unfinished_tasks_come_again_first_and_only_once():
    """A resumed run first trains on tasks that were started but not trained on, then continues the order of draws."""
    sampler = TaskSampler(refs(a=5, b=9), seed=4)
    drawn = [next(sampler) for _ in range(8)]
    state = sampler.state_dict(drawn[5:])
    resumed = TaskSampler(refs(a=5, b=9), seed=4)
    resumed.load_state_dict(state)
    assert list(itertools.islice(resumed, 3)) == drawn[5:]
    assert list(itertools.islice(resumed, 20)) == list(itertools.islice(sampler, 20))


def test_tasks_put_back_are_part_of_the_state():
    sampler = TaskSampler(refs(a=5, b=9), seed=4)
    drawn = [next(sampler) for _ in range(4)]
    sampler.put_back(drawn[2:])
    state = sampler.state_dict()
    resumed = TaskSampler(refs(a=5, b=9), seed=4)
    resumed.load_state_dict(state)
    assert list(itertools.islice(resumed, 6)) == list(itertools.islice(sampler, 6))
    assert sampler.state_dict() == {"drawn": 8}


def mixed():
    """Tasks of airline and retail with equal ids, as in tau2."""
    airline = [TaskRef("airline", "s", str(i), False, "airline") for i in range(5)]
    retail = [TaskRef("retail", "s", str(i), False, "retail") for i in range(9)]
    return [*airline, *retail]


def drawn(sampler, n):
    return [(task.domain, task.task_id) for task in itertools.islice(sampler, n)]


def test_domains_share_by_weight_and_each_keeps_the_order_it_would_have_alone():
    order = drawn(TaskSampler(mixed(), seed=2, weights={"airline": 1, "retail": 3}), 40)
    assert Counter(domain for domain, _ in order[:4]) == {"airline": 1, "retail": 3}
    assert Counter(domain for domain, _ in order) == {"airline": 10, "retail": 30}
    alone = drawn(TaskSampler(mixed()[5:], seed=2), 30)
    assert [one for one in order if one[0] == "retail"] == alone
    assert len(set(alone[:9])) == 9, "a task was drawn twice in one pass"


def test_a_resumed_mixture_goes_on_with_the_right_domain_of_equal_ids():
    weights = {"airline": 1, "retail": 2}
    whole = drawn(TaskSampler(mixed(), seed=4, weights=weights), 30)
    stopped = TaskSampler(mixed(), seed=4, weights=weights)
    begun = [next(stopped) for _ in range(11)]
    unfinished = [begun[7], begun[10]]
    state = stopped.state_dict(unfinished)
    resumed = TaskSampler(mixed(), seed=4, weights=weights)
    resumed.load_state_dict(state)
    assert drawn(resumed, 21) == [(t.domain, t.task_id) for t in unfinished] + whole[11:]


def test_weights_are_of_the_domains_of_the_tasks():
    with pytest.raises(ValueError, match="weights of"):
        TaskSampler(mixed(), seed=0, weights={"airline": 1})
