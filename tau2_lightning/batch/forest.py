"""Merging rows of many sessions into one forest in which every distinct prefix is kept once (a radix tree)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tau2_lightning.segments import Experts, Segment, Tokens, common_prefix


def merge(leaves: Sequence[Segment]) -> list[Segment]:
    """The same rows in one forest: the new leaf of each, in order.

    Every distinct non-empty prefix of the rows is held by one segment, and segments with one parent begin with
    different tokens. Rows are not flattened and tokens are not copied: segments of the forest are the given segments
    themselves where nothing was merged or split, and views of their tokens elsewhere. Where segments are merged, the
    first one's experts stay. Raises ValueError for a row without tokens.
    """
    if any(leaf.end == 0 for leaf in leaves):
        raise ValueError("a row without tokens has no place in a forest")
    tree = _Tree()
    for leaf in leaves:
        tree.insert(leaf)
    for leaf in leaves:
        tree.cut_at_end(leaf)
    return [tree.segment(leaf) for leaf in leaves]


def distinct_segments(leaves: Iterable[Segment]) -> tuple[Segment, ...]:
    """Every segment on the paths to ``leaves``, once, parents before their children."""
    found: dict[Segment, None] = {}
    for leaf in leaves:
        new: list[Segment] = []
        segment: Segment | None = leaf
        while segment is not None and segment not in found:
            new.append(segment)
            segment = segment.parent
        found.update(dict.fromkeys(reversed(new)))
    return tuple(found)


class _Branch:
    """An unfinished segment: tokens ``[start, end)`` of every row through it. ``whole`` is the given segment that
    it is, unless it was cut."""

    __slots__ = ("above", "below", "end", "experts", "frozen", "start", "tokens", "whole")

    def __init__(
        self,
        above: _Branch | None,
        tokens: Tokens,
        start: int,
        whole: Segment | None = None,
        experts: Experts | None = None,
    ) -> None:
        self.above, self.tokens, self.start, self.whole, self.experts = above, tokens, start, whole, experts
        self.end = start + len(tokens)
        self.below: dict[int, _Branch] = {}
        self.frozen: Segment | None = None


class _Tree:
    """Branches below a root without tokens, and the branch in which each given segment ends."""

    def __init__(self) -> None:
        self._root = _Branch(None, np.zeros(0, np.int32), 0)
        self._ends: dict[Segment, _Branch] = {}

    def insert(self, leaf: Segment) -> None:
        """Add a row; segments that an earlier row has are not looked at again."""
        new: list[Segment] = []
        segment: Segment | None = leaf
        while segment is not None and segment not in self._ends:
            new.append(segment)
            segment = segment.parent
        branch = self._root if segment is None else self._end_of(segment)
        for segment in reversed(new):
            branch = self._ends[segment] = self._extend(branch, segment)

    def cut_at_end(self, leaf: Segment) -> None:
        """Cut the branch where the row ends, if the row is a prefix of another."""
        branch = self._end_of(leaf)
        if leaf.end < branch.end:
            self._cut(branch, leaf.end)

    def segment(self, leaf: Segment) -> Segment:
        """The finished segment in which a row ends."""
        return _freeze(self._end_of(leaf))

    def _end_of(self, segment: Segment) -> _Branch:
        branch = self._ends[segment]
        while branch.above is not None and segment.end <= branch.start:  # it was cut since: the end is further up
            branch = branch.above
        return branch

    def _extend(self, branch: _Branch, segment: Segment) -> _Branch:
        """Follow or add the tokens of ``segment``, which starts inside ``branch``; returns the branch it ends in."""
        tokens, at, done = segment.token_ids, segment.start, 0
        while done < len(tokens):
            if at < branch.end:
                n = common_prefix(branch.tokens[at - branch.start :], tokens[done:])
                at, done = at + n, done + n
                if done < len(tokens) and at < branch.end:
                    branch = self._cut(branch, at)
                continue
            child = branch.below.get(int(tokens[done]))
            if child is None:
                experts = None if segment.experts is None else segment.experts[done:]
                child = _Branch(branch, tokens[done:], at, segment if done == 0 else None, experts)
                branch.below[int(tokens[done])] = child
                return child
            branch = child
        return branch

    @staticmethod
    def _cut(branch: _Branch, at: int) -> _Branch:
        """Cut ``branch`` in two; it becomes the lower part. Returns the upper part, which ends at ``at``."""
        assert branch.above is not None
        size = at - branch.start
        upper = _Branch(branch.above, branch.tokens[:size], branch.start)
        if branch.experts is not None:
            upper.experts, branch.experts = branch.experts[:size], branch.experts[size:]
        branch.above.below[int(upper.tokens[0])] = upper
        branch.above, branch.tokens, branch.start, branch.whole = upper, branch.tokens[size:], at, None
        upper.below[int(branch.tokens[0])] = branch
        return upper


def _freeze(branch: _Branch) -> Segment:
    new: list[_Branch] = []
    while branch.frozen is None and branch.above is not None:
        new.append(branch)
        branch = branch.above
    parent = branch.frozen
    for branch in reversed(new):
        whole = branch.whole
        branch.frozen = (
            whole if whole is not None and whole.parent is parent else Segment(branch.tokens, parent, branch.experts)
        )
        parent = branch.frozen
    assert parent is not None
    return parent
