"""Rows laid out as a forest: each shared token once, labels and positions as in the separate rows."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.shared_prefixes import Layout
from tau2_lightning.microbatch import ModelRows
from tests.batch.groups import random_groups


def seen_by(model: ModelRows, index: int) -> list[int]:
    """The token ids that the token at ``index`` sees, itself included."""
    assert model.nodes is not None
    ids = model.input_ids[0].tolist()
    return [
        token
        for node in model.nodes
        for j, token in enumerate(ids[node.start : node.end], node.start)
        if j <= index < node.below
    ]


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(20, 200))
def test_every_label_sees_exactly_its_row(seed: int, groups: int, samples: int, budget: int) -> None:
    batch = Batch.from_groups(random_groups(seed, groups, samples), GRPO(), version=3)
    microbatches = batch.microbatches(budget, packed=True, shared=True)
    rows = {row.row_id: row for row in batch.rows}
    found = []
    for mb in microbatches:
        model = mb["model"]
        if model.nodes is None:
            found += [row for row in mb["row_ids"].tolist() if row >= 0]
            continue
        assert model.position_ids is not None
        assert sum(node.end - node.start for node in model.nodes) == model.input_ids.numel()
        places = iter(model.places.tolist())
        for number, mask in zip(mb["row_ids"].tolist(), model.trained, strict=True):
            found.append(number)
            tokens = batch.tokens(rows[number]).tolist()
            for t in mask.nonzero()[:, 0].tolist():
                place = next(places)
                at = int(model.at[place])
                assert seen_by(model, at) == tokens[: t + 1]
                assert int(model.labels[place]) == tokens[t + 1]
                assert int(model.position_ids[0, at]) == t
        assert next(places, None) is None
        if len(mb["lengths"]) > 1:
            assert model.input_ids.numel() <= budget
    assert sorted(found) == sorted(rows)


def test_shared_tokens_stand_once() -> None:
    batch = Batch.from_groups(random_groups(1, 3, 4), GRPO(), version=3)
    unique = int(batch.sharing()["unique_tokens"])
    (mb,) = batch.microbatches(10**6, packed=True, shared=True)
    assert mb["model"].input_ids.shape == (1, unique) and unique < sum(len(row) for row in batch.rows)
    assert Layout.of([row.leaf for row in batch.rows]).tokens == unique


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 4), st.integers(30, 200), st.integers(1, 3))
def test_shards_of_a_forest_hold_every_row_once(seed: int, groups: int, samples: int, budget: int, world: int) -> None:
    batch = Batch.from_groups(random_groups(seed, groups, samples), GRPO(), version=3)
    count = batch.microbatch_count(budget, world, packed=True, shared=True, multiple=2)
    shards = [batch.shard(rank, world, shared=True) for rank in range(world)]
    parts = [shard.microbatches(budget, count, packed=True, shared=True) for shard in shards]
    assert count % 2 == 0 and all(len(part) == count for part in parts)
    ids = [row for part in parts for mb in part for row in mb["row_ids"].tolist() if row >= 0]
    assert sorted(ids) == sorted(row.row_id for row in batch.rows)
    trained = sum(int(mb["loss_mask"].sum()) for part in parts for mb in part)
    assert trained == batch.n_tokens


def test_a_label_that_two_rows_share_is_computed_once() -> None:
    batch = Batch.from_rows(Batch.from_groups(random_groups(2, 1, 1), GRPO(), version=3).rows * 2)
    (mb,) = batch.microbatches(10**6, packed=True, shared=True)
    model = mb["model"]
    assert len(model.places) == 2 * len(model.at) == int(np.sum([row.loss_mask.sum() for row in batch.rows]))
    assert torch.equal(model.places[: len(model.at)], model.places[len(model.at) :])
