"""One row of a batch: the token segment in which it ends, and data about its labels."""

from __future__ import annotations

from collections.abc import Mapping
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
    reference_logprobs, chosen). ``group`` numbers the group of the row's episode in its batch.
    """

    row_id: int
    leaf: Segment
    loss_mask: npt.NDArray[np.bool_]
    behaviour_logprobs: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    columns: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    group: int = 0

    def __len__(self) -> int:
        return len(self.loss_mask)
