"""The micro-batches of a Batch that one rank computes, and the results of a forward pass by row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.batch.supervised import split_step
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.dialogues import EncodedDialogue

if TYPE_CHECKING:
    from tau2_lightning.strategy import ArchonStrategy
    from tau2_lightning.strategy.reference import ReferencePolicy

MicroBatches = list[MicroBatch]


def supervised_microbatches(
    strategy: ArchonStrategy, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], max_tokens_per_mb: int = 8192
) -> MicroBatches:
    """One optimizer step of supervised rows as this data rank's micro-batches, for ``strategy.forward_backward``.

    A row is its token ids and, of each, whether it is trained (the first cannot be: nothing predicts it). In a
    micro-batch, ``loss_mask`` [B, T] bool marks the labels that are trained, and ``n_tokens`` (float scalar) counts
    those of the whole step, over all ranks. It holds at most ``max_tokens_per_mb`` tokens, or one longer row.
    """
    dialogues = [EncodedDialogue(np.asarray(ids, np.int32), np.asarray(trained, np.bool_)) for ids, trained in rows]
    return split_step(
        dialogues,
        max_tokens_per_mb,
        rank=strategy.data_rank,
        world=strategy.data_world,
        packed=strategy.packs,
        shared=strategy.shares,
        trunk_weight=strategy.trunk_weight,
    )


@dataclass(frozen=True)
class BatchForward:
    """Computes batches under ``strategy`` in micro-batches of at most ``max_tokens_per_mb`` tokens.

    ``temperature`` divides the logits for the loss; it must equal the rollouts' temperature, so that trainer and
    engine describe the same distribution.
    """

    strategy: ArchonStrategy
    max_tokens_per_mb: int
    temperature: float = 1.0

    def local_microbatches(self, batch: Batch, *, experts: bool = True) -> MicroBatches:
        """This data-parallel rank's part of ``batch``; every rank gets equally many micro-batches.

        ``experts``: with the experts that the engine chose, where they are recorded. With a pipeline the count is a
        multiple of its ranks, because its schedule runs that many in any case.
        """
        s, budget = self.strategy, self.max_tokens_per_mb
        packed, shared, weight = s.packs, s.shares, s.trunk_weight
        count = batch.microbatch_count(
            budget, s.data_world, multiple=s.spec.p, packed=packed, shared=shared, trunk_weight=weight
        )
        part = batch.shard(s.data_rank, s.data_world, shared=shared)
        return part.microbatches(budget, count, packed=packed, shared=shared, trunk_weight=weight, experts=experts)

    def minibatches(
        self, batch: Batch, algorithm: PolicyGradient, reference: ReferencePolicy | None, n: int, seed: int = 0
    ) -> list[Batch]:
        """At most ``n`` optimizer steps of ``batch``, with the proximal and reference log-probs that ``algorithm`` asks
        for, and with what it makes of them over the whole batch. Call it before the first of them. Collective.

        The first step's weights are the proximal policy's, so its own forward pass is the one that counts: its
        micro-batches have no ``proximal_logprobs`` (see `PolicyGradient.proximal_logprobs`), and only the others are
        computed here. An algorithm that needs them of the whole batch gets all (``finishes_late``).
        """
        if reference is not None:
            batch = self.with_logprobs(batch, "reference_logprobs", reference.active())
        if algorithm.finishes_late:
            if algorithm.needs_proximal:
                batch = self.with_logprobs(batch, "proximal_logprobs")
            return batch.finished(algorithm).minibatches(n, seed)
        parts = batch.minibatches(n, seed)
        if not algorithm.needs_proximal or len(parts) < 2:
            return parts
        later = self._logprobs(batch.select([row for part in parts[1:] for row in part.rows]), self.temperature)
        return [parts[0], *(part.with_column("proximal_logprobs", later) for part in parts[1:])]

    def with_logprobs(self, batch: Batch, name: str, policy: AbstractContextManager[None] | None = None) -> Batch:
        """``batch`` with the column ``name``: log-probs (nats) of its labels under the current weights.

        ``policy``: a context in which the model has other weights, e.g. the reference. The engine's choice of experts
        is not theirs: such a policy routes by itself. Each data-parallel rank computes its part of the rows, and all
        get all results, because minibatches are sharded anew.
        """
        with policy or nullcontext():
            values = self._logprobs(batch, self.temperature, experts=policy is None)
        return batch.with_column(name, values)

    def token_logprobs(
        self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[list[float]]:
        """Log-probs (nats, temperature 1) of the tokens at ``positions[i]`` of row i of token ids, on every rank.

        By default of all tokens but the first of each row.
        """
        batch = scoring_batch(rows, positions)
        values = self._logprobs(batch, 1.0)
        return [values[row.row_id][row.loss_mask].tolist() for row in batch.rows]

    def _logprobs(
        self, batch: Batch, temperature: float, *, experts: bool = True
    ) -> dict[int, npt.NDArray[np.float32]]:
        """Log-probs (nats) of the trained labels of all rows, by row_id, [T] float32, 0 elsewhere. Collective."""
        microbatches = self.local_microbatches(batch, experts=experts)
        outputs = self.strategy.token_outputs(microbatches, temperature=temperature)
        ends = np.cumsum([len(row) for row in batch.rows]).tolist()
        spans = {row.row_id: slice(end - len(row), end) for row, end in zip(batch.rows, ends, strict=True)}
        flat = torch.zeros(ends[-1] if ends else 0)
        for mb, out in zip(microbatches, outputs, strict=True):
            for row, length, line in zip(mb["row_ids"].tolist(), mb["lengths"].tolist(), out.logprobs, strict=True):
                if row in spans:  # not a padding row
                    flat[spans[row]] = line[:length].cpu()
        found = self.strategy.sum_over_data(flat.to(self.strategy.root_device)).cpu().numpy()
        return {row: found[span] for row, span in spans.items()}
