"""A training batch: credited rows over a forest of token segments, cut into steps, shards and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.segments import Segment, Tokens
from tau2_lightning.trajectory import Group

from . import codec
from .collate import collate
from .crediting import Crediting, credited_rows
from .forest import distinct_segments, merge
from .packing import balance, plan_microbatches
from .rows import Row, by_episode
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

    def shard(self, rank: int, world: int) -> Batch:
        """Rows of data-parallel ``rank`` of ``world``: balanced by tokens, deterministic, global counts kept."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is outside a world of {world}")
        if world == 1:
            return self
        return self.select([self.rows[i] for i in balance([len(row) for row in self.rows], world)[rank]])

    def microbatch_count(
        self, max_tokens_per_mb: int, world: int = 1, *, packed: bool = False, multiple: int = 1
    ) -> int:
        """Micro-batches that the fullest of ``world`` shards needs (at least 1), rounded up to a ``multiple``. All
        ranks get the same number without communication, because each has the whole batch."""
        lengths = [len(row) for row in self.rows]
        shards = [[lengths[i] for i in shard] for shard in balance(lengths, world)]
        needed = max(1, *(len(plan_microbatches(shard, max_tokens_per_mb, packed=packed)) for shard in shards))
        return -(-needed // multiple) * multiple

    def microbatches(
        self, max_tokens_per_mb: int, count: int | None = None, *, packed: bool = False, experts: bool = True
    ) -> list[MicroBatch]:
        """Cut into micro-batches of at most ``max_tokens_per_mb`` tokens.

        ``packed`` lays rows side by side for the model, without their padding, so that only real tokens count.
        Otherwise padded tokens count, and rows of similar length share a micro-batch. A longer row gets its own.
        ``count`` asks for exactly that many micro-batches: the rows are spread over more of them, and empty ones (one
        padding row, nothing trained) are added if needed, so that every rank takes part in every collective.
        ``experts``: with the experts that the engine chose, where they are recorded. Raises ValueError if ``count``
        cannot hold the rows.
        """
        plan = plan_microbatches([len(row) for row in self.rows], max_tokens_per_mb, count, packed=packed)
        return [self.collate([self.rows[i] for i in part], packed=packed, experts=experts) for part in plan]

    def collate(self, rows: Sequence[Row], *, packed: bool = False, experts: bool = True) -> MicroBatch:
        """One micro-batch of some of the rows, with the counts of the whole optimizer step."""
        return collate(
            rows,
            n_tokens=self.n_tokens,
            n_rows=self.n_rows,
            n_episodes=self.n_episodes,
            version=self.version,
            columns=self.columns,
            packed=packed,
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

    def with_logprobs(self, name: str, microbatches: Sequence[MicroBatch], logprobs: Sequence[Tensor]) -> Batch:
        """``with_column`` from a forward pass: ``logprobs[i]`` [B, T] belong to ``microbatches[i]`` of this batch."""
        values: dict[int, npt.NDArray[np.float32]] = {}
        for mb, rows in zip(microbatches, logprobs, strict=True):
            found = rows.detach().to("cpu", torch.float32).numpy()
            for row, length, line in zip(mb["row_ids"].tolist(), mb["lengths"].tolist(), found, strict=True):
                values[row] = line[:length]
        return self.with_column(name, values)

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
