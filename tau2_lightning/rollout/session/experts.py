"""Splits the recorded experts of one generation into those of the two segments of its turn."""

from __future__ import annotations

import numpy as np

from tau2_lightning.segments import Experts


def split_experts(
    experts: Experts | None, prompt: int, sampled: int, *, root: bool
) -> tuple[Experts | None, Experts | None]:
    """The experts before each of the turn's ``prompt`` new tokens, and before each of its ``sampled`` tokens.

    `Segment` says why they are those *before* a token. ``experts`` begin at the last token of the previous turn (at the
    first token for a ``root``) and end before the last sampled token, which the engine did not compute. Returns
    (None, None) if their number does not fit: then the record is not of this turn.
    """
    if experts is None or len(experts) != prompt + sampled - root:
        return None, None
    if root:
        experts = np.concatenate([np.zeros_like(experts[:1]), experts])
    return experts[:prompt], experts[prompt:]
