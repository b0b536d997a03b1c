"""Rows as the model computes them when every token that they share goes through it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tau2_lightning.microbatch import ModelRows, Node, Trunk
from tau2_lightning.segments import Segment

from .experts import forest_experts
from .forest import distinct_segments
from .rows import Row

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The segments of a forest depth first: ``offsets`` says at which index each begins, ``nodes`` hold all tokens.

    Segments without a branch between them make one node.
    """

    offsets: dict[Segment, int]
    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, leaves: Sequence[Segment]) -> Layout:
        """The forest under ``leaves``, which are segments of one `forest.merge`."""
        below: dict[Segment | None, list[Segment]] = {}
        for segment in distinct_segments(leaves):
            below.setdefault(segment.parent, []).append(segment)
        order: list[Segment] = []
        waiting = below.get(None, [])[::-1]
        while waiting:
            segment = waiting.pop()
            order.append(segment)
            waiting += below.get(segment, [])[::-1]
        offsets, size = {}, 0
        for segment in order:
            offsets[segment] = size
            size += len(segment.token_ids)
        ends: dict[Segment, int] = {}
        for segment in reversed(order):
            branches = below.get(segment)
            ends[segment] = ends[branches[-1]] if branches else offsets[segment] + len(segment.token_ids)
        nodes: list[Node] = []
        for segment in order:
            end = offsets[segment] + len(segment.token_ids)
            if segment.parent is not None and len(below[segment.parent]) == 1:
                nodes[-1] = Node(nodes[-1].start, end, ends[segment])
            else:
                nodes.append(Node(offsets[segment], end, ends[segment]))
        return cls(offsets, tuple(node for node in nodes if node.end > node.start))

    @property
    def tokens(self) -> int:
        """Number of tokens, each once."""
        return max((node.below for node in self.nodes), default=0)


def shared_rows(
    rows: Sequence[Row], layout: Layout, width: int, trunk: Trunk | None = None, *, experts: bool = True
) -> ModelRows:
    """The model's view of ``rows``, whose leaves make ``layout``; ``width`` is that of the padded rows.

    With a ``trunk``, which all these rows begin with, its tokens are left out. ``experts``: with the experts that the
    segments record.
    """
    ids, positions = np.zeros(layout.tokens, np.int64), np.zeros(layout.tokens, np.int64)
    for segment, offset in layout.offsets.items():
        span = slice(offset, offset + len(segment.token_ids))
        ids[span], positions[span] = segment.token_ids, np.arange(segment.start, segment.end)
    trained = np.zeros((len(rows), width), np.bool_)
    at: list[Array] = []
    labels: list[Array] = []
    for i, row in enumerate(rows):
        trained[i, : len(row)] = row.loss_mask
        spans = [(layout.offsets[segment], len(segment.token_ids)) for segment in row.leaf.path()]
        index = np.concatenate([np.arange(start, start + size) for start, size in spans])
        marked = np.flatnonzero(row.loss_mask)
        at.append(index[marked])
        labels.append(ids[index[marked + 1]])
    pairs = np.stack([np.concatenate(at), np.concatenate(labels)])
    # Rows may share a label too, e.g. the branches of an episode after a turn: it is computed once.
    distinct, places = np.unique(pairs, axis=1, return_inverse=True)
    routed = forest_experts(layout.offsets, layout.tokens) if experts else None
    left_out = trunk.length if trunk is not None else 0
    nodes = (Node(max(start - left_out, 0), end - left_out, below - left_out) for start, end, below in layout.nodes)
    return ModelRows(
        torch.from_numpy(ids[left_out:])[None],
        torch.from_numpy(distinct[0] - left_out),
        torch.from_numpy(distinct[1].copy()),
        torch.from_numpy(trained),
        torch.from_numpy(places.reshape(-1)),
        torch.from_numpy(positions[left_out:])[None],
        tuple(node for node in nodes if node.end > node.start),
        trunk,
        routed.cut(left_out) if routed is not None else None,
    )
