"""The experts recorded in the segments of rows: collated for the model, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tau2_lightning.microbatch import RoutedExperts
from tau2_lightning.segments import Experts, Segment

from .rows import Row


def collated_experts(rows: Sequence[Row], width: int) -> RoutedExperts | None:
    """The recorded experts of ``rows`` as [B, ``width``, layers, k]; None when no row has any.

    The last position of a row is never known: the engine had no reason to compute it. Nothing depends on it.
    Raises ValueError when the records differ in layers, k or dtype.
    """
    made = _empty((segment for row in rows for segment in row.leaf.path()), len(rows), width)
    if made is None:
        return None
    index, known = made
    for i, row in enumerate(rows):
        for segment in row.leaf.path():
            if segment.experts is not None:
                skip = int(segment.start == 0)  # nothing predicts the first token
                span = slice(segment.start - 1 + skip, segment.end - 1)
                index[i, span], known[i, span] = segment.experts[skip:], True
    return RoutedExperts(torch.from_numpy(index), torch.from_numpy(known))


def forest_experts(offsets: Mapping[Segment, int], size: int) -> RoutedExperts | None:
    """The recorded experts of a forest's ``size`` tokens as [1, ``size``, layers, k], of which each segment's begin at
    its offset; None when no segment has any.

    Rows that share a token may have recorded different experts for it: the first one's stay. Raises ValueError when the
    records differ in layers, k or dtype.
    """
    made = _empty(offsets, 1, size)
    if made is None:
        return None
    index, known = made
    for segment, offset in offsets.items():
        if segment.experts is None:
            continue
        own = slice(offset, offset + len(segment.token_ids) - 1)
        index[0, own], known[0, own] = segment.experts[1:], True
        if segment.parent is not None:
            before = offsets[segment.parent] + len(segment.parent.token_ids) - 1
            if not known[0, before]:
                index[0, before], known[0, before] = segment.experts[0], True
    return RoutedExperts(torch.from_numpy(index), torch.from_numpy(known))


def _empty(segments: Iterable[Segment], rows: int, width: int) -> tuple[Experts, npt.NDArray[np.bool_]] | None:
    """Arrays for the experts that ``segments`` record, and for which positions have any."""
    kinds = {(each.experts.shape[1:], each.experts.dtype) for each in segments if each.experts is not None}
    if len(kinds) > 1:
        raise ValueError(f"the experts of a micro-batch are of different models: {sorted(map(str, kinds))}")
    for shape, dtype in kinds:
        return np.zeros((rows, width, *shape), dtype), np.zeros((rows, width), np.bool_)
    return None


def replayed_share(leaves: Iterable[Segment]) -> float:
    """The share of the positions of rows, each row's last one not counted, whose experts are recorded."""
    positions = known = 0
    for leaf in leaves:
        positions += leaf.end - 1
        for segment in leaf.path():
            if segment.experts is not None:
                known += segment.end - segment.start - (segment.start == 0)
    return known / positions if positions else 0.0
