"""One row of a batch: the token segment in which it ends, and data about its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tau2_lightning.segments import Segment


@dataclass(frozen=True, eq=False)
class Row:
    """One row: the segment it ends in and the data of its labels.

    ``leaf`` is a segment of the batch's forest. Arrays have the row's length T and are aligned to label positions:
    index t describes token t + 1. ``loss_mask`` bool, ``behaviour_logprobs`` float32, ``advantages`` float32,
    ``versions`` int32 (-1 where not sampled). ``columns`` holds optional float32 arrays (proximal_logprobs,
    reference_logprobs, chosen). ``group`` numbers the group of the row's episode in its batch, ``episode`` the episode
    that the row is of (-1: the row is one of its own); ``share`` is the row's part of the episode's trained tokens, in
    (0, 1].
    """

    row_id: int
    leaf: Segment
    loss_mask: npt.NDArray[np.bool_]
    behaviour_logprobs: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    columns: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    group: int = 0
    episode: int = -1
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.loss_mask)


def by_episode(rows: Sequence[Row]) -> list[list[int]]:
    """The indices of each episode's rows, in the order of the episodes' first rows."""
    found: dict[tuple[bool, int], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault((row.episode >= 0, row.episode if row.episode >= 0 else i), []).append(i)
    return list(found.values())
