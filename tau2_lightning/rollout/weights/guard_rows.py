"""The tokens that the parity guard compares: what the policy sampled, and the end of the prompt before it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tau2_lightning.trajectory import Trajectory

#: Sampled tokens that are compared in one row, at most. A row ends behind the last of them.
SAMPLED_TOKENS = 256
#: Tokens of the rendered prompt that are compared in one row: those just before the first sampled token.
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class GuardRows:
    """Rows of token ids, and of each row the indices (1 or more, ascending) of the tokens to compare."""

    rows: list[list[int]]
    positions: list[list[int]]

    @classmethod
    def chosen(cls, trajectories: Sequence[Trajectory], count: int) -> GuardRows | None:
        """``count`` rows drawn from those with trained tokens, the same ones for the same rows; None if there are none.

        Sampled tokens are compared because they are what training uses. Rows of arbitrary ids are no substitute: there,
        equal bfloat16 weights differ by up to 6 nats between two implementations of attention.
        """
        candidates = [row for row in trajectories if row.loss_mask.any()]
        if not candidates:
            return None
        drawn = random.Random(len(candidates)).sample(candidates, min(count, len(candidates)))
        made = [_compared(row) for row in drawn]
        return cls([tokens for tokens, _ in made], [positions for _, positions in made])

    @classmethod
    def prompt(cls, token_ids: Sequence[int]) -> GuardRows:
        """The end of a rendered prompt, for a comparison before anything was sampled."""
        length = len(token_ids)
        return cls([list(token_ids)], [list(range(max(length - PROMPT_TOKENS, 1), length))])


def _compared(row: Trajectory) -> tuple[list[int], list[int]]:
    sampled = np.flatnonzero(row.loss_mask)[:SAMPLED_TOKENS]
    first, last = int(sampled[0]), int(sampled[-1])
    positions = [*range(max(first - PROMPT_TOKENS, 1), first), *map(int, sampled)]
    return row.leaf.flat()[: last + 1].tolist(), positions
