"""Plain token rows as a batch, for a forward pass that returns log-probs of chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tau2_lightning.segments import Segment

from .batch import Batch
from .rows import Row


def scoring_batch(rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None) -> Batch:
    """A Batch of ``rows`` in which the tokens at ``positions[i]`` of row i count, by default all but the first.

    The label of token p is at index p - 1. Only the labels that count get logits, so a long prompt costs no logits of
    its whole length.
    """
    chosen = [range(1, len(row)) for row in rows] if positions is None else positions
    return Batch.from_rows([_row(number, row, at) for number, (row, at) in enumerate(zip(rows, chosen, strict=True))])


def _row(number: int, token_ids: Sequence[int], positions: Sequence[int]) -> Row:
    length = len(token_ids)
    mask = np.zeros(length, np.bool_)
    mask[np.asarray(positions, np.int64) - 1] = True
    zeros = np.zeros(length, np.float32)
    return Row(number, Segment.of(token_ids), mask, zeros, zeros, np.full(length, -1, np.int32))
