"""A training batch: credited rows over a forest of token segments, cut into steps, shards and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tau2_lightning.microbatch import MicroBatch, Trunk
from tau2_lightning.segments import Segment, Tokens, shared_tokens
from tau2_lightning.trajectory import Group

from . import codec
from .collate import collate
from .crediting import Crediting, credited_rows
from .forest import distinct_segments, merge
from .packing import balance, plan_microbatches
from .rows import Row, by_episode
from .runs import even_runs
from .shared_prefixes import Layout
from .trunks import Budget, Part, plan_parts
from .whole_batch import Finishing, finished_rows

LOGPROB_COLUMNS = ("proximal_logprobs", "reference_logprobs")


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one optimizer step or of a part of it. Parts choose rows and share the segments of the whole.

    ``n_tokens``, ``n_rows`` and ``n_episodes`` count the trained tokens, the rows and their episodes in the whole
    optimizer step, whatever part of its rows this is: the denominators of the loss. ``version`` is the trainer's weight
    version. ``statistics`` are numbers about the rollouts the batch was made from, and stay with every part.
    ``columns`` names the optional columns that its rows have, and that the empty micro-batches of a part without rows
    must have too.
    """

    rows: tuple[Row, ...]
    n_tokens: int
    n_rows: int
    version: int = 0
    statistics: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    n_episodes: int = 0

    @classmethod
    def from_groups(cls, groups: Sequence[Group], algorithm: Crediting, *, version: int) -> Batch:
        """Credit the groups' rewards to their sampled tokens. Rows that train nothing are left out and counted."""
        rows, statistics = credited_rows(groups, algorithm, version)
        batch = cls.from_rows(rows, version=version)
        batch = replace(batch, statistics=statistics | batch.sharing())
        return batch if algorithm.finishes_late else batch.finished(algorithm)

    @classmethod
    def from_rows(cls, rows: Sequence[Row], *, version: int = 0) -> Batch:
        """Merge the segments of ``rows`` into one forest; the counts are these rows' own.

        Raises ValueError for a row without tokens.
        """
        leaves = merge([row.leaf for row in rows])
        placed = tuple(replace(row, leaf=leaf) for row, leaf in zip(rows, leaves, strict=True))
        return cls(placed, _trained(placed), len(placed), version, n_episodes=len(by_episode(placed)))

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The forest under these rows: every segment once, parents before their children."""
        return distinct_segments(row.leaf for row in self.rows)

    def tokens(self, row: Row) -> Tokens:
        """The whole row, [T] int32."""
        return row.leaf.flat()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens among these rows (``n_tokens`` counts the whole step's)."""
        return _trained(self.rows)

    def sharing(self) -> dict[str, float]:
        """``row_tokens``: sum of row lengths; ``unique_tokens``: tokens of the forest, each prefix once; ``shared``:
        the fraction of row tokens that a forward pass over the forest saves."""
        total = sum(len(row) for row in self.rows)
        unique = sum(len(segment.token_ids) for segment in self.segments)
        return {
            "row_tokens": float(total),
            "unique_tokens": float(unique),
            "shared_tokens_fraction": 1.0 - unique / total if total else 0.0,
        }

    def select(self, rows: Sequence[Row], *, own_counts: bool = False) -> Batch:
        """A batch of some of the rows over the same segments. Its denominators are the whole step's, or these rows'
        with ``own_counts``."""
        part = replace(self, rows=tuple(rows))
        if not own_counts:
            return part
        return replace(part, n_tokens=part.trained_tokens, n_rows=len(rows), n_episodes=len(by_episode(part.rows)))

    def minibatches(self, n: int, seed: int = 0) -> list[Batch]:
        """Split into at most ``n`` optimizer steps of near-equal episode counts, each with its own denominators.

        Episodes are shuffled by ``seed``; the rows of one stay together. Split before sharding, so that every rank
        makes the same steps.
        """
        if n < 1:
            raise ValueError(f"cannot split a batch into {n} parts")
        episodes = by_episode(self.rows)
        order = np.random.default_rng(seed).permutation(len(episodes)) if n > 1 else np.arange(len(episodes))
        parts = [sorted(i for e in part for i in episodes[e]) for part in np.array_split(order, n) if len(part)]
        return [self.select([self.rows[i] for i in part], own_counts=True) for part in parts]

    def shard(self, rank: int, world: int, *, shared: bool = False) -> Batch:
        """Rows of data-parallel ``rank`` of ``world``: balanced by tokens, deterministic, global counts kept.

        With ``shared``, rows that share a prefix stay together, and tokens that rows share count once.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is outside a world of {world}")
        return self if world == 1 else self._shards(world, shared)[rank]

    def _shards(self, world: int, shared: bool) -> list[Batch]:
        if shared:
            parts = even_runs(*self._sizes, world)
            rows = self._depth_first
        else:
            parts, rows = balance([len(row) for row in self.rows], world), list(self.rows)
        return [self.select([rows[i] for i in part]) for part in parts]

    @cached_property
    def _depth_first(self) -> list[Row]:
        """The rows in the order of the forest: those that share a prefix are neighbours."""
        offsets = Layout.of([row.leaf for row in self.rows]).offsets
        return sorted(self.rows, key=lambda row: offsets[row.leaf])

    @cached_property
    def _sizes(self) -> tuple[list[int], list[int]]:
        """Of ``_depth_first``: the rows' lengths, and the tokens that each shares with the one before it."""
        rows = self._depth_first
        shared = [0, *(shared_tokens(a.leaf, b.leaf) for a, b in pairwise(rows))]
        return [len(row) for row in rows], shared[: len(rows)]

    def microbatch_count(
        self,
        max_tokens_per_mb: int,
        world: int = 1,
        *,
        packed: bool = False,
        shared: bool = False,
        trunk_weight: float = 0.0,
        multiple: int = 1,
    ) -> int:
        """Micro-batches that the fullest of ``world`` shards needs (at least 1), rounded up to a ``multiple``. All
        ranks get the same number without communication, because each has the whole batch."""
        shards = [self] if world == 1 else self._shards(world, shared)
        budget = Budget(max_tokens_per_mb, trunk_weight)
        needed = max(1, *(len(shard._parts(budget, None, packed, shared, False)) for shard in shards))
        return -(-needed // multiple) * multiple

    def microbatches(
        self,
        max_tokens_per_mb: int,
        count: int | None = None,
        *,
        packed: bool = False,
        shared: bool = False,
        trunk_weight: float = 0.0,
        experts: bool = True,
    ) -> list[MicroBatch]:
        """Cut into micro-batches of at most ``max_tokens_per_mb`` tokens.

        ``packed`` lays rows side by side for the model, without their padding, so that only real tokens count.
        Otherwise padded tokens count, and rows of similar length share a micro-batch. With ``shared`` too, tokens that
        rows of a micro-batch share are computed once and count once, and a prefix that several micro-batches share is
        left out of them (`Trunk`); it counts as ``trunk_weight`` of its tokens (`trunks.Budget`). A longer row gets its
        own. ``count`` asks for exactly that many micro-batches: the rows are spread over more of them, and empty ones
        (one padding row, nothing trained) are added if needed, so that every rank takes part in every collective.
        ``experts``: with the experts that the engine chose, where they are recorded. Raises ValueError if ``count``
        cannot hold the rows.
        """
        parts = self._parts(Budget(max_tokens_per_mb, trunk_weight), count, packed, shared, experts)
        return [
            self.collate(part.rows, packed=packed, shared=shared, trunk=part.trunk, experts=experts) for part in parts
        ]

    def _parts(self, budget: Budget, count: int | None, packed: bool, shared: bool, experts: bool) -> list[Part]:
        if shared:
            return plan_parts(self._depth_first, budget, count, experts=experts)
        plan = plan_microbatches([len(row) for row in self.rows], budget.tokens, count, packed=packed)
        return [Part([self.rows[i] for i in part]) for part in plan]

    def collate(
        self,
        rows: Sequence[Row],
        *,
        packed: bool = False,
        shared: bool = False,
        trunk: Trunk | None = None,
        experts: bool = True,
    ) -> MicroBatch:
        """One micro-batch of some of the rows, with the counts of the whole optimizer step."""
        return collate(
            rows,
            n_tokens=self.n_tokens,
            n_rows=self.n_rows,
            n_episodes=self.n_episodes,
            version=self.version,
            columns=self.columns,
            packed=packed,
            shared=shared,
            trunk=trunk,
            experts=experts,
        )

    def with_column(self, name: str, values: Mapping[int, npt.NDArray[np.float32]]) -> Batch:
        """Add proximal or reference log-probs: ``values`` maps row_id to [T] float32, label-aligned.

        Raises ValueError for an unknown name or a wrong length, KeyError for a missing row.
        """
        if name not in LOGPROB_COLUMNS:
            raise ValueError(f"{name!r} is not one of {', '.join(LOGPROB_COLUMNS)}")
        rows = []
        for row in self.rows:
            column = np.asarray(values[row.row_id], np.float32)
            if column.shape != (len(row),):
                raise ValueError(f"{name} of row {row.row_id}: {column.shape} values for {len(row)} tokens")
            rows.append(replace(row, columns={**row.columns, name: column}))
        return replace(self, rows=tuple(rows), columns=tuple(sorted({*self.columns, name})))

    def finished(self, algorithm: Finishing) -> Batch:
        """The batch with what ``algorithm.finish`` makes of all its trained tokens. Call it once, on the whole batch.

        ``from_groups`` has called it, unless the algorithm needs log-probs of the trainer for it (``finishes_late``).
        """
        rows, added = finished_rows(self.rows, algorithm, self.version)
        return replace(self, rows=tuple(rows), columns=tuple(sorted({*self.columns, *added})))

    def to_bytes(self) -> bytes:
        """Safetensors bytes with JSON metadata, for other processes and files."""
        counts = self.n_tokens, self.n_rows, self.version
        head = codec.Head(*counts, dict(self.statistics), self.columns, self.n_episodes)
        return codec.encode(self.rows, self.segments, head)

    @classmethod
    def from_bytes(cls, data: bytes) -> Batch:
        """Inverse of ``to_bytes``. Raises ValueError when the bytes are not a batch."""
        rows, head = codec.decode(data)
        counts = head.n_tokens, head.n_rows, head.version
        return cls(rows, *counts, head.statistics, head.columns, head.n_episodes)


def _trained(rows: Sequence[Row]) -> int:
    return sum(int(row.loss_mask.sum()) for row in rows)
