"""Plain token rows as a Batch, for a forward pass that asks for the log-prob of every token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .batch import Batch, Row


def scoring_batch(rows: Sequence[Sequence[int]]) -> Batch:
    """A Batch of ``rows`` in which every label counts: index t of a row asks for token t + 1 given tokens <= t."""
    tokens = [np.asarray(row, np.int32) for row in rows]
    return Batch.from_rows(tokens, [_row(number, len(row)) for number, row in enumerate(tokens)])


def _row(number: int, length: int) -> Row:
    mask = np.ones(length, np.bool_)
    mask[-1:] = False  # nothing follows the last token
    zeros = np.zeros(length, np.float32)
    return Row(number, -1, mask, zeros, zeros, np.full(length, -1, np.int32))
