"""Rows that begin alike, kept once: a compressed prefix tree (radix tree) over token sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of tokens shared by every row below it. ``parent`` indexes the segment before it, -1 at a root.

    ``token_ids`` [n] int32, n >= 1. A parent always has a smaller index than its children.
    """

    parent: int
    token_ids: Tokens


@dataclass(frozen=True, eq=False)
class Row:
    """One row: the segment it ends in and what concerns its labels.

    ``leaf`` indexes Batch.segments. Arrays have the row's length T and are aligned to label positions: index t speaks
    of token t + 1. ``loss_mask`` bool, ``behaviour_logprobs`` float32, ``advantages`` float32, ``versions`` int32
    (-1 where not sampled). ``columns`` holds optional float32 arrays (proximal_logprobs, reference_logprobs).
    """

    row_id: int
    leaf: int
    loss_mask: npt.NDArray[np.bool_]
    behaviour_logprobs: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    columns: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.loss_mask)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that ``a`` and ``b`` share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


def build_forest(rows: Sequence[Tokens]) -> tuple[tuple[Segment, ...], tuple[int, ...]]:
    """Compress token rows into segments; returns ``(segments, leaf of each row)``.

    Every unique prefix is stored once: the sum of segment lengths is the number of distinct non-empty prefixes among
    the rows. Raises ValueError for an empty row. O(total tokens) after one sort.
    """
    if any(len(row) == 0 for row in rows):
        raise ValueError("a row without tokens has no place in a forest")
    order = sorted(range(len(rows)), key=lambda i: rows[i].astype(">i4").tobytes())
    parent: list[int] = []
    spans: list[tuple[int, int, int]] = []  # (row that owns the tokens, start, end)
    leaves = [-1] * len(rows)
    stack: list[int] = []  # the path of segments of the previous row
    previous: Tokens | None = None
    for i in order:
        row = rows[i]
        shared = common_prefix(previous, row) if previous is not None else 0
        while stack and spans[stack[-1]][1] >= shared:
            stack.pop()
        if stack and spans[stack[-1]][2] > shared:  # the branch point lies inside this segment: split it
            lower = stack.pop()
            owner, start, end = spans[lower]
            upper = len(spans)
            spans.append((owner, start, shared))
            parent.append(parent[lower])
            spans[lower], parent[lower] = (owner, shared, end), upper
            stack.append(upper)
        if len(row) > shared:
            spans.append((i, shared, len(row)))
            parent.append(stack[-1] if stack else -1)
            stack.append(len(spans) - 1)
        leaves[i] = stack[-1]
        previous = row
    # A child starts where its parent ends, so ordering by start puts parents first.
    rank = sorted(range(len(spans)), key=lambda s: (spans[s][1], spans[s][0]))
    new = {old: index for index, old in enumerate(rank)}
    segments = tuple(
        Segment(new[parent[s]] if parent[s] >= 0 else -1, rows[spans[s][0]][spans[s][1] : spans[s][2]]) for s in rank
    )
    return segments, tuple(new[leaf] for leaf in leaves)


def flatten(segments: Sequence[Segment], leaf: int) -> Tokens:
    """The whole row that ends in segment ``leaf``: tokens from its root down, [T] int32."""
    parts: list[Tokens] = []
    while leaf >= 0:
        parts.append(segments[leaf].token_ids)
        leaf = segments[leaf].parent
    return np.concatenate(parts[::-1]).astype(np.int32, copy=False)
