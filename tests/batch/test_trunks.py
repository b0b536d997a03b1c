"""Which prefixes become trunks: those of many micro-batches, also next to rows that share little with them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.batch.trunks import SHORTEST
from tau2_lightning.microbatch import MicroBatch, Trunk

WORDS = list(range(500, 510))  # with which every prompt begins, e.g. a template's


def behind(prompt: list[int], rows: int, seed: int) -> list[list[int]]:
    """Rows of 5 to 15 tokens of their own behind one prompt."""
    rng = random.Random(seed)
    return [[*prompt, *(rng.randrange(100) for _ in range(rng.randint(5, 15)))] for _ in range(rows)]


def batch_of(*groups: list[list[int]], prompt: int) -> Batch:
    """All tokens behind the first ``prompt`` are trained."""
    rows = [row for group in groups for row in group]
    return scoring_batch(rows, [list(range(min(prompt, len(row) - 1), len(row))) for row in rows])


def computed(microbatches: list[MicroBatch]) -> int:
    """Tokens that go through the model, those of each trunk once."""
    trunks = trunks_of(microbatches)
    own = sum(trunk.input_ids.numel() for trunk in trunks)
    return sum(mb["model"].input_ids.numel() for mb in microbatches) + own


def trunks_of(microbatches: list[MicroBatch]) -> list[Trunk]:
    """All trunks, parents before those that continue them."""
    found = [mb["model"].trunk for mb in microbatches]
    return list(dict.fromkeys(each for trunk in found if trunk is not None for each in trunk.path()))


@pytest.mark.parametrize("budget", [60, 150])
def test_domains_whose_prompts_begin_with_the_same_words_get_a_trunk_each(budget: int) -> None:
    first, second = ([*WORDS, *range(start, start + 200)] for start in (1000, 2000))
    batch = batch_of(behind(first, 20, 1), behind(second, 20, 2), prompt=210)
    microbatches = batch.microbatches(budget, packed=True, shared=True)
    lengths = sorted(trunk.input_ids.numel() for trunk in {mb["model"].trunk for mb in microbatches} if trunk)
    assert lengths == [209, 209] and all(mb["model"].trunk is not None for mb in microbatches)
    assert computed(microbatches) < 1.2 * batch.sharing()["unique_tokens"]


def test_a_short_question_of_the_agent_does_not_cost_the_others_their_trunk() -> None:
    episodes = behind([*WORDS, *range(1000, 1200)], 20, 1)
    batch = batch_of(episodes, [[*WORDS, 3, 4, 5], [*WORDS, 3]], prompt=210)
    microbatches = batch.microbatches(60, packed=True, shared=True)
    trunks = [mb["model"].trunk for mb in microbatches]
    assert sum(trunk is None for trunk in trunks) == 1 and len(set(trunks)) == 2
    assert computed(microbatches) < 1.2 * batch.sharing()["unique_tokens"]


def test_the_trunks_of_tasks_continue_that_of_their_domain() -> None:
    policy = list(range(1000, 1000 + SHORTEST))
    tasks = [[*policy, *range(start, start + 300)] for start in (2000, 3000)]
    batch = batch_of(*(behind(task, 20, i) for i, task in enumerate(tasks)), prompt=364)
    microbatches = batch.microbatches(100, packed=True, shared=True)
    domain, *others = trunks_of(microbatches)
    assert domain.input_ids[0].tolist() == policy and domain.length == SHORTEST
    assert [(each.parent, each.length, each.input_ids.numel()) for each in others] == 2 * [(domain, 363, 299)]
    assert all(mb["model"].trunk in others for mb in microbatches)
    for mb in microbatches:  # trunk by trunk, so that one can be forgotten before the next
        trunk = mb["model"].trunk
        assert trunk is not None
        begin = torch.cat([each.input_ids[0] for each in trunk.path()])
        assert all(torch.equal(row[: trunk.length], begin) for row in mb["input_ids"])
    assert computed(microbatches) < 1.05 * batch.sharing()["unique_tokens"]


def test_what_begins_alike_in_too_few_tokens_is_repeated_in_each_trunk() -> None:
    policy = list(range(1000, 1000 + SHORTEST - 1))
    tasks = [[*policy, *range(start, start + 300)] for start in (2000, 3000)]
    batch = batch_of(*(behind(task, 20, i) for i, task in enumerate(tasks)), prompt=363)
    trunks = trunks_of(batch.microbatches(100, packed=True, shared=True))
    assert [(trunk.parent, trunk.length) for trunk in trunks] == 2 * [(None, 362)]


def test_an_opening_of_all_tasks_is_one_trunk_where_that_is_cheaper() -> None:
    policy = list(range(1000, 1400))
    tasks = [[*policy, *range(start, start + 20)] for start in (2000, 3000, 4000)]
    batch = batch_of(*(behind(task, 8, i) for i, task in enumerate(tasks)), prompt=420)
    trunks = {mb["model"].trunk for mb in batch.microbatches(100, packed=True, shared=True)}
    assert [trunk.input_ids.numel() for trunk in trunks if trunk is not None] == [400]


@pytest.mark.parametrize(("weight", "allowed"), [(0.0, 100), (0.1, 80), (3.0, 50)])
def test_a_trunk_counts_for_the_memory_that_it_takes(weight: float, allowed: int) -> None:
    """200 tokens of a trunk at .1 leave 80 of 100; at most half of them are taken."""
    batch = batch_of(behind(list(range(1000, 1201)), 30, 1), prompt=201)
    microbatches = batch.microbatches(100, packed=True, shared=True, trunk_weight=weight)
    sizes = [mb["model"].input_ids.numel() for mb in microbatches]
    assert {trunk.length for trunk in trunks_of(microbatches)} == {200}
    assert allowed - 20 < max(sizes) <= allowed
    count = batch.microbatch_count(100, packed=True, shared=True, trunk_weight=weight)
    assert count == len(microbatches)


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=5),
    budget=st.integers(1, 400),
    more=st.integers(0, 3),
    weight=st.sampled_from([0.0, 0.06, 1.3]),
)
def test_every_row_is_computed_once_and_nothing_costs_more_than_without_trunks(
    prompts: list[list[int]], budget: int, more: int, weight: float
) -> None:
    """Prompts of up to four blocks of 40 tokens each, of two kinds: random trees whose trunks may lie anywhere."""
    groups = [
        behind([token for kind in prompt for token in range(1000 * kind, 1000 * kind + 40)], 3, seed)
        for seed, prompt in enumerate(prompts)
    ]
    rows = [row for group in groups for row in group]
    batch = scoring_batch(rows, [list(range(len(row) - 4, len(row))) for row in rows])
    microbatches = batch.microbatches(budget, packed=True, shared=True, trunk_weight=weight)
    count = batch.microbatch_count(budget, packed=True, shared=True, trunk_weight=weight)
    wider = batch.microbatches(budget, count + more, packed=True, shared=True, trunk_weight=weight)
    assert len(microbatches) == count and len(wider) == count + more
    for every in (microbatches, wider):
        assert sorted(i for mb in every for i in mb["row_ids"].tolist() if i >= 0) == list(range(len(batch.rows)))
        for mb in every:
            assert len(mb["lengths"]) == 1 or mb["model"].input_ids.numel() <= budget
    assert computed(microbatches) <= sum(len(row) for row in batch.rows)
