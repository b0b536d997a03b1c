"""Prefix forests: they flatten to their rows, hold each prefix once, and a forward pass over them is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.algorithm import GRPO
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.rows import build_forest, flatten
from tests.batch.groups import group, random_groups, trajectory

token_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=0, max_size=12)


@settings(max_examples=200, deadline=None)
@given(rows=token_rows)
def test_a_forest_flattens_to_its_rows_and_keeps_every_prefix_once(rows) -> None:
    arrays = [np.asarray(row, np.int32) for row in rows]
    segments, leaves = build_forest(arrays)
    assert [flatten(segments, leaf).tolist() for leaf in leaves] == rows
    prefixes = {tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)}
    assert sum(len(s.token_ids) for s in segments) == len(prefixes)
    assert all(s.parent < i for i, s in enumerate(segments)) and all(len(s.token_ids) for s in segments)
    starts = [(s.parent, int(s.token_ids[0])) for s in segments]
    assert len(set(starts)) == len(starts), "siblings begin with different tokens"


def test_an_empty_row_has_no_place_in_a_forest() -> None:
    with pytest.raises(ValueError, match="without tokens"):
        build_forest([np.zeros(0, np.int32)])


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

    def gradients(compute) -> tuple[dict[int, torch.Tensor], list[torch.Tensor]]:
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
            paths.append(np.concatenate([paths[segment.parent], own]) if segment.parent >= 0 else own)
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
            path = torch.from_numpy(paths[row.leaf])
            out[row.row_id] = lp[path[:-1], ids[path[1:]]]
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
