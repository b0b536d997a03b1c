"""The experts of one generation, as parts of the two segments of its turn."""

from __future__ import annotations

import numpy as np

from tau2_lightning.segments import Experts


def split_experts(
    experts: Experts | None, prompt: int, sampled: int, *, root: bool
) -> tuple[Experts | None, Experts | None]:
    """Of the turn's ``prompt`` new tokens and of its ``sampled`` tokens: the experts before each (see `Segment`).

    ``experts`` begin at the last token of the turn before, or at the first token of a ``root``, and end before the
    last sampled token, which the engine has not computed. (None, None) where there are more or fewer: the record is not
    of this turn.
    """
    if experts is None or len(experts) != prompt + sampled - root:
        return None, None
    if root:
        experts = np.concatenate([np.zeros_like(experts[:1]), experts])
    return experts[:prompt], experts[prompt:]
