"""The experts recorded in the segments of rows: collated for the model, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from tau2_lightning.microbatch import RoutedExperts
from tau2_lightning.segments import Segment

from .rows import Row


def collated_experts(rows: Sequence[Row], width: int) -> RoutedExperts | None:
    """The recorded experts of ``rows`` as [B, ``width``, layers, k]; None when no row has any.

    The last position of a row is never known: the engine had no reason to compute it. Nothing depends on it.
    Raises ValueError when the records differ in layers, k or dtype.
    """
    recorded = [segment for row in rows for segment in row.leaf.path() if segment.experts is not None]
    if not recorded:
        return None
    kinds = {(segment.experts.shape[1:], segment.experts.dtype) for segment in recorded if segment.experts is not None}
    if len(kinds) > 1:
        raise ValueError(f"the experts of a micro-batch are of different models: {sorted(map(str, kinds))}")
    shape, dtype = kinds.pop()
    index = np.zeros((len(rows), width, *shape), dtype)
    known = np.zeros((len(rows), width), np.bool_)
    for i, row in enumerate(rows):
        for segment in row.leaf.path():
            if segment.experts is not None:
                skip = int(segment.start == 0)  # nothing predicts the first token
                span = slice(segment.start - 1 + skip, segment.end - 1)
                index[i, span], known[i, span] = segment.experts[skip:], True
    return RoutedExperts(torch.from_numpy(index), torch.from_numpy(known))


def replayed_share(leaves: Iterable[Segment]) -> float:
    """The share of the positions of rows, each row's last one not counted, whose experts are recorded."""
    positions = known = 0
    for leaf in leaves:
        positions += leaf.end - 1
        for segment in leaf.path():
            if segment.experts is not None:
                known += segment.end - segment.start - (segment.start == 0)
    return known / positions if positions else 0.0
