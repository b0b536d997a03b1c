"""Plain token rows as a batch, for a forward pass that returns the log-prob of every token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tau2_lightning.segments import Segment

from .batch import Batch
from .rows import Row


def scoring_batch(rows: Sequence[Sequence[int]]) -> Batch:
    """A Batch of ``rows`` in which every label counts: index t of a row is the prediction of token t + 1 given tokens
    <= t."""
    return Batch.from_rows([_row(number, row) for number, row in enumerate(rows)])


def _row(number: int, token_ids: Sequence[int]) -> Row:
    length = len(token_ids)
    mask = np.ones(length, np.bool_)
    mask[-1:] = False  # nothing follows the last token
    zeros = np.zeros(length, np.float32)
    return Row(number, Segment.of(token_ids), mask, zeros, zeros, np.full(length, -1, np.int32))
