"""Prefix forests: they flatten to their rows, hold each prefix once, and a forward pass over them is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.forest import distinct_segments, merge
from tau2_lightning.segments import Segment, shared_tokens
from tests.batch.groups import group, random_groups, trajectory

token_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=0, max_size=12)


@settings(max_examples=200, deadline=None)
@given(rows=token_rows)
def test_a_forest_flattens_to_its_rows_and_keeps_every_prefix_once(rows) -> None:
    leaves = merge([Segment.of(row) for row in rows])
    assert [leaf.flat().tolist() for leaf in leaves] == rows
    assert_forest(leaves, rows)


def assert_forest(leaves: list[Segment], rows: list[list[int]]) -> None:
    """Every prefix of ``rows`` is held once, parents come first, and siblings begin with different tokens."""
    segments = distinct_segments(leaves)
    prefixes = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    assert sum(len(s.token_ids) for s in segments) == len(prefixes)
    index = {segment: i for i, segment in enumerate(segments)}
    assert all(s.parent is None or index[s.parent] < i for i, s in enumerate(segments))
    assert all(len(s.token_ids) for s in segments)
    starts = [(s.parent, int(s.token_ids[0])) for s in segments]
    assert len(set(starts)) == len(starts), "siblings begin with different tokens"


# A tree of segments: each is given by its parent among the earlier ones (taken modulo) and its tokens.
trees = st.lists(st.tuples(st.integers(-1, 9), st.lists(st.integers(0, 1), max_size=5)), min_size=1, max_size=10)


def grown(tree: list[tuple[int, list[int]]], root: Segment | None = None) -> list[Segment]:
    segments: list[Segment] = []
    for parent, tokens in tree:
        above = segments[parent % len(segments)] if segments and parent >= 0 else root
        segments.append(Segment.of(tokens, above))
    return segments


@settings(max_examples=300, deadline=None)
@given(sessions=st.lists(trees, min_size=1, max_size=5), prompt=st.lists(st.integers(0, 1), max_size=4), data=st.data())
def test_trees_with_branches_merge_into_a_forest_of_exactly_their_rows(sessions, prompt, data) -> None:
    """Rows end anywhere in a tree, in inner segments too, and trees may share segments or only tokens."""
    shared = Segment.of(prompt)
    every = [s for tree in sessions for s in grown(tree, shared if data.draw(st.booleans()) else None) if s.end]
    leaves = data.draw(st.lists(st.sampled_from(every), max_size=12)) if every else []
    rows = [leaf.flat().tolist() for leaf in leaves]
    merged = merge(leaves)
    assert [leaf.flat().tolist() for leaf in merged] == rows
    assert_forest(merged, rows)
    for a, x in zip(leaves, rows, strict=True):
        for b, y in zip(leaves, rows, strict=True):
            alike = [p == q for p, q in zip(x, y, strict=False)]
            assert shared_tokens(a, b) == (alike.index(False) if False in alike else len(alike))


def test_rows_that_share_nothing_keep_their_segments_and_merged_ones_are_views() -> None:
    alone = Segment.of([7, 8], Segment.of([1, 2, 3]))
    other = Segment.of([6], Segment.of([5, 5]))
    assert merge([alone, other]) == [alone, other], "the objects themselves, not copies"
    near = Segment.of([9], Segment.of([1, 2, 4]))
    first, second, third = merge([alone, near, other])
    assert third is other and first.flat().tolist() == [1, 2, 3, 7, 8] and second.flat().tolist() == [1, 2, 4, 9]
    given = [s.token_ids for row in (alone, near) for s in row.path()]
    for segment in distinct_segments([first, second]):
        assert any(np.shares_memory(segment.token_ids, tokens) for tokens in given), "tokens were copied"


def test_an_empty_row_has_no_place_in_a_forest() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        merge([Segment.of([]), Segment.of([1])])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_attention_over_the_forest_gives_the_rows_log_probs_and_gradients(seed) -> None:
    """Each unique token once, attending to its ancestors, equals causal attention over every flat row (float64)."""
    batch = Batch.from_groups(random_groups(seed, 2, 3), GRPO(), version=3)
    torch.manual_seed(seed)
    weights = [torch.randn(shape, dtype=torch.float64) * 0.3 for shape in ((100, 8), (32, 8), (8, 24), (8, 100))]

    def logprobs(ids, positions, sees, w) -> torch.Tensor:
        """Two attention layers; ``sees`` [n, n] bool."""
        h = w[0][ids] + w[1][positions]
        for _ in range(2):
            q, k, v = (h @ w[2]).chunk(3, -1)
            h = h + torch.softmax((q @ k.T).masked_fill(~sees, float("-inf")), -1) @ v
        return torch.log_softmax(h @ w[3], -1)

    def gradients(compute) -> tuple[dict[int, torch.Tensor], list[torch.Tensor | None]]:
        w = [x.clone().requires_grad_() for x in weights]
        rows = compute(w)
        loss = sum((rows[r.row_id] * torch.from_numpy(r.advantages[:-1].astype(np.float64))).sum() for r in batch.rows)
        loss.backward()
        return rows, [x.grad for x in w]

    def flat(w) -> dict[int, torch.Tensor]:
        out = {}
        for row in batch.rows:
            ids = torch.from_numpy(batch.tokens(row)).long()
            n = len(ids)
            lp = logprobs(ids, torch.arange(n), torch.ones(n, n, dtype=torch.bool).tril(), w)
            out[row.row_id] = lp[torch.arange(n - 1), ids[1:]]
        return out

    def shared(w) -> dict[int, torch.Tensor]:
        starts = np.cumsum([0, *(len(s.token_ids) for s in batch.segments)])
        paths: list[np.ndarray] = []  # forest positions from the root to the end of each segment
        for i, segment in enumerate(batch.segments):
            own = np.arange(starts[i], starts[i + 1])
            above = segment.parent
            paths.append(np.concatenate([paths[batch.segments.index(above)], own]) if above is not None else own)
        ids = torch.from_numpy(np.concatenate([s.token_ids for s in batch.segments])).long()
        positions = torch.zeros_like(ids)
        sees = torch.zeros(len(ids), len(ids), dtype=torch.bool)
        for path in paths:
            positions[path] = torch.arange(len(path))
            for depth, token in enumerate(path):
                sees[token, path[: depth + 1]] = True
        lp = logprobs(ids, positions, sees, w)
        out = {}
        for row in batch.rows:
            at = torch.from_numpy(paths[batch.segments.index(row.leaf)])
            out[row.row_id] = lp[at[:-1], ids[at[1:]]]
        return out

    want, got = gradients(flat), gradients(shared)
    for row in batch.rows:
        torch.testing.assert_close(got[0][row.row_id], want[0][row.row_id], rtol=0, atol=1e-9)
    for a, b in zip(got[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_sharing_counts_what_a_forest_saves() -> None:
    a, b = trajectory([1, 2, 3, 4], [(2, 4)]), trajectory([1, 2, 5], [(2, 3)])
    batch = Batch.from_groups([group((1.0, a), (0.0, b))], GRPO(), version=0)
    assert batch.sharing() == {"row_tokens": 7.0, "unique_tokens": 5.0, "shared_tokens_fraction": pytest.approx(2 / 7)}
    assert batch.statistics["unique_tokens"] == 5.0


def test_a_long_chain_of_segments_can_be_shown_as_text():
    segment = Segment.of([1])
    for token in range(5000):
        segment = Segment.of([token], segment)
    assert "start=5000" in repr(segment)
