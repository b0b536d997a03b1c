"""Token segments: immutable runs of tokens in a tree, the form in which tokens go from a session to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.int32]
# Expert numbers, [n, layers, k] uint8 or int16.
Experts: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False, slots=True)
class Segment:
    """A run of tokens behind its ``parent`` (None at a root). A row is the path from a root to one segment.

    ``token_ids`` is [n] int32 and may be empty; it is never written to, so rows, trees and batches share one segment.
    ``start`` and ``end`` are the half-open span of its tokens inside every row that passes through it.

    ``experts`` [n, layers, k] are the experts that the engine's mixture-of-experts layers chose at the position BEFORE
    each token, which is the position that predicts it; None if they are not known. With this order, a row's experts are
    those of the segments on its path, also when several rows continue one segment. Row 0 of a root has no meaning.
    """

    token_ids: Tokens
    parent: Segment | None = field(default=None, repr=False)  # a chain may be thousands long
    experts: Experts | None = field(default=None, repr=False)
    start: int = field(init=False)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        if self.experts is not None and len(self.experts) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} tokens with the experts of {len(self.experts)}")
        start = self.parent.end if self.parent is not None else 0
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "end", start + len(self.token_ids))

    @classmethod
    def of(
        cls, token_ids: Sequence[int] | Tokens, parent: Segment | None = None, experts: Experts | None = None
    ) -> Segment:
        """A segment of ``token_ids`` behind ``parent``. An int32 array is kept without a copy, as a read-only view.

        Raises ValueError when ``experts`` are of another number of tokens.
        """
        tokens = np.asarray(token_ids, np.int32).view()
        tokens.flags.writeable = False
        return cls(tokens, parent, experts)

    def path(self) -> list[Segment]:
        """The segments from the root to this one."""
        found: list[Segment] = []
        segment: Segment | None = self
        while segment is not None:
            found.append(segment)
            segment = segment.parent
        return found[::-1]

    def flat(self) -> Tokens:
        """The whole row that ends here, [end] int32. Not a copy where the row is one segment."""
        if self.parent is None:
            return self.token_ids
        return np.concatenate([segment.token_ids for segment in self.path()])


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that ``a`` and ``b`` share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


def shared_tokens(a: Segment, b: Segment) -> int:
    """Number of leading tokens that the rows ending in ``a`` and ``b`` share. Common segments are not compared."""
    mine, other = a.path(), b.path()
    i = j = at = 0
    while i < len(mine) and j < len(other):
        if mine[i] is other[j] and at == mine[i].start:
            at, i, j = mine[i].end, i + 1, j + 1
            continue
        n = common_prefix(mine[i].token_ids[at - mine[i].start :], other[j].token_ids[at - other[j].start :])
        at += n
        ended = at == mine[i].end, at == other[j].end
        if not any(ended):
            break
        i, j = i + ended[0], j + ended[1]
    return at
