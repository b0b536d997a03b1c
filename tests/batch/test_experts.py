"""Recorded experts from segments to micro-batches: merged, cut, packed, written and read, and counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.experts import collated_experts, replayed_share
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.batch.shared_prefixes import Layout
from tau2_lightning.segments import Experts, Segment
from tau2_lightning.telemetry.step_metrics import router_metrics

LAYERS, USED = 3, 2


def experts_of(tokens: list[int]) -> Experts:
    """Experts [T, layers, k] of every position of a row: a digest of the tokens up to it, so equal prefixes agree."""
    found = [[hash((*tokens[: t + 1], layer)) % 200 for layer in range(LAYERS)] for t in range(len(tokens))]
    return np.array([[[one, one + 1] for one in position] for position in found], np.uint8).reshape(-1, LAYERS, USED)


def recorded(rows: list[list[int]], cuts: list[list[int]], *, only_last: bool = False) -> Batch:
    """A batch of ``rows``, each a chain of segments cut at ``cuts``, with their experts; all labels are trained, or
    the last of each row."""
    batch = scoring_batch(rows, [[len(row) - 1] for row in rows] if only_last else None)
    made = []
    for row, tokens, at in zip(batch.rows, rows, cuts, strict=True):
        before = np.concatenate([np.zeros((1, LAYERS, USED), np.uint8), experts_of(tokens)[:-1]])
        leaf: Segment | None = None
        ends = sorted({min(cut, len(tokens)) for cut in at} | {len(tokens)})
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            leaf = Segment.of(tokens[start:end], leaf, before[start:end])
        assert leaf is not None
        made.append(replace(row, leaf=leaf))
    return Batch.from_rows(made)


def check(batch: Batch, rows: list[list[int]], *, packed: bool) -> None:
    for mb in batch.microbatches(64, packed=packed):
        model = mb["model"]
        assert model.routed is not None
        assert model.routed.index.shape == (*model.input_ids.shape, LAYERS, USED)
        index, known = model.routed.index, model.routed.known
        for i, row in enumerate(mb["row_ids"].tolist()):
            n = len(rows[row])
            if model.nodes is not None:
                start = int(mb["lengths"][:i].sum())
                got, there = index[0, start : start + n], known[0, start : start + n]
            else:
                got, there = index[i, :n], known[i, :n]
                assert not known[i, n:].any()
            assert there.tolist() == [True] * (n - 1) + [False]
            assert torch.equal(got[:-1], torch.from_numpy(experts_of(rows[row]))[:-1])


def check_shared(batch: Batch, rows: list[list[int]], budget: int) -> None:
    """Every position of every row has its experts in the forest or in the trunk that the forest is behind."""
    for mb in batch.microbatches(budget, packed=True, shared=True):
        model = mb["model"]
        assert model.routed is not None and model.routed.index.shape == (*model.input_ids.shape, LAYERS, USED)
        index, known = model.routed.index, model.routed.known
        if model.trunk is not None:
            assert model.trunk.routed is not None
            index = torch.cat([model.trunk.routed.index, index], 1)
            known = torch.cat([model.trunk.routed.known, known], 1)
        by_number = {row.row_id: row for row in batch.rows}
        here = [by_number[number] for number in mb["row_ids"].tolist()]
        layout = Layout.of([row.leaf for row in here])
        if layout.tokens != index.shape[1] or index.shape[0] > 1:  # nothing is shared: rows as always
            continue
        for row in here:
            spans = [np.arange(len(s.token_ids)) + layout.offsets[s] for s in row.leaf.path()]
            at = torch.from_numpy(np.concatenate(spans))[:-1]
            assert known[0, at].all()
            assert torch.equal(index[0, at], torch.from_numpy(experts_of(rows[row.row_id]))[:-1])


rows_and_cuts = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=2, max_size=12), st.lists(st.integers(1, 11), max_size=3)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(given_rows=rows_and_cuts, opening=st.sampled_from([0, 1, 70]), budget=st.integers(16, 64))
def test_every_position_of_a_forest_has_its_experts(given_rows, opening, budget) -> None:
    rows = [[*range(3, 3 + opening), *row] for row, _ in given_rows]
    cuts = [[cut + opening // 2 for cut in cuts] for _, cuts in given_rows]
    check_shared(recorded(rows, cuts, only_last=True), rows, budget)


def test_a_trunk_has_its_experts() -> None:
    rows = [[*range(3, 80), i, 1, 2] for i in range(20)]
    batch = recorded(rows, [[40]] * 20, only_last=True)
    microbatches = batch.microbatches(30, packed=True, shared=True)
    assert len(microbatches) > 1 and all(mb["model"].trunk is not None for mb in microbatches)
    check_shared(batch, rows, 30)
    none = batch.microbatches(30, packed=True, shared=True, experts=False)
    assert all(mb["model"].routed is None and mb["model"].trunk.routed is None for mb in none)  # type: ignore[union-attr]


@settings(max_examples=100, deadline=None)
@given(given_rows=rows_and_cuts, packed=st.booleans())
def test_every_position_of_every_row_has_its_own_experts(given_rows, packed) -> None:
    rows = [row for row, _ in given_rows]
    batch = recorded(rows, [cuts for _, cuts in given_rows])
    check(batch, rows, packed=packed)
    check(Batch.from_bytes(batch.to_bytes()), rows, packed=packed)
    assert replayed_share(row.leaf for row in batch.rows) == 1.0


def test_experts_behind_a_shared_segment_are_those_of_the_rows_own_path() -> None:
    """Two turns continue one turn, whose last token was computed once for each."""
    shared = Segment.of([1, 2], None, np.zeros((2, LAYERS, USED), np.uint8))
    leaves = [Segment.of([3 + i, 9], shared, np.full((2, LAYERS, USED), 7 + i, np.uint8)) for i in (0, 1)]
    batch = scoring_batch([leaf.flat().tolist() for leaf in leaves])
    batch = Batch.from_rows([replace(row, leaf=leaf) for row, leaf in zip(batch.rows, leaves, strict=True)])
    routed = collated_experts(batch.rows, 4)
    assert routed is not None
    assert routed.index[:, :, 0, 0].tolist() == [[0, 7, 7, 0], [0, 8, 8, 0]]


def test_segments_without_a_record_are_not_known_and_counted() -> None:
    first = Segment.of([1, 2, 3], None, np.ones((3, LAYERS, USED), np.uint8))
    leaf = Segment.of([6, 7], Segment.of([4, 5], first), np.ones((2, LAYERS, USED), np.uint8))
    batch = scoring_batch([leaf.flat().tolist()])
    batch = Batch.from_rows([replace(batch.rows[0], leaf=leaf)])
    routed = collated_experts(batch.rows, 7)
    assert routed is not None and routed.known.tolist() == [[True, True, False, False, True, True, False]]
    assert router_metrics(batch)["router/replayed"] == pytest.approx(4 / 6)


def test_a_batch_without_records_is_as_before() -> None:
    batch = scoring_batch([[1, 2, 3], [1, 2]])
    assert all(mb["model"].routed is None for mb in batch.microbatches(8, packed=True))
    assert router_metrics(batch) == {"router/replayed": 0.0}
    assert b"segment_experts" not in batch.to_bytes()


def test_a_pass_of_another_policy_gets_no_records() -> None:
    batch = recorded([[1, 2, 3]], [[]])
    assert all(mb["model"].routed is None for mb in batch.microbatches(8, packed=True, experts=False))


def test_records_of_different_models_in_one_micro_batch_are_an_error() -> None:
    leaves = [Segment.of([i, 2], None, np.ones((2, LAYERS, k), np.uint8)) for i, k in ((1, 2), (2, 3))]
    batch = scoring_batch([leaf.flat().tolist() for leaf in leaves])
    batch = Batch.from_rows([replace(row, leaf=leaf) for row, leaf in zip(batch.rows, leaves, strict=True)])
    with pytest.raises(ValueError, match="different models"):
        batch.microbatches(8)


def test_a_record_of_another_number_of_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 tokens with the experts of 2"):
        Segment.of([1, 2, 3], None, np.ones((2, LAYERS, USED), np.uint8))
