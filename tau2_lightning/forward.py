"""The micro-batches of a Batch that one rank computes, and the results of a forward pass by row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.microbatch import MicroBatch

if TYPE_CHECKING:
    from tau2_lightning.strategy import ArchonStrategy
    from tau2_lightning.strategy.reference import ReferencePolicy

MicroBatches = list[MicroBatch]


@dataclass(frozen=True)
class BatchForward:
    """Computes batches under ``strategy`` in micro-batches of at most ``max_tokens_per_mb`` tokens.

    ``temperature`` divides the logits for the loss; it must equal the rollouts' temperature, so that trainer and
    engine describe the same distribution.
    """

    strategy: ArchonStrategy
    max_tokens_per_mb: int
    temperature: float = 1.0

    def local_microbatches(self, batch: Batch) -> MicroBatches:
        """This data-parallel rank's part of ``batch``; every rank gets equally many micro-batches.

        With a pipeline the count is a multiple of its ranks, because its schedule runs that many in any case.
        """
        s, budget = self.strategy, self.max_tokens_per_mb
        count = batch.microbatch_count(budget, s.data_world, multiple=s.spec.p, packed=s.packs)
        return batch.shard(s.data_rank, s.data_world).microbatches(budget, count, packed=s.packs)

    def prepared(self, batch: Batch, algorithm: PolicyGradient, reference: ReferencePolicy | None) -> Batch:
        """``batch`` with the proximal and reference log-probs that ``algorithm`` asks for, and with what it makes of
        them over the whole batch. Call it before the first optimizer step. Collective."""
        if algorithm.needs_proximal:
            batch = self.with_logprobs(batch, "proximal_logprobs")
        if reference is not None:
            batch = self.with_logprobs(batch, "reference_logprobs", reference.active())
        return batch.finished(algorithm) if algorithm.finishes_late else batch

    def with_logprobs(self, batch: Batch, name: str, policy: AbstractContextManager[None] | None = None) -> Batch:
        """``batch`` with the column ``name``: log-probs (nats) of its labels under the current weights.

        ``policy``: a context in which the model has other weights, e.g. the reference. The engine's choice of experts
        is not theirs: such a policy routes by itself. Every data-parallel rank computes all rows, because a batch is
        sharded by tokens afterwards.
        """
        microbatches = self._whole(batch, experts=policy is None)
        with policy or nullcontext():
            outputs = self.strategy.token_outputs(microbatches, temperature=self.temperature)
        return batch.with_logprobs(name, microbatches, [output.logprobs for output in outputs])

    def token_logprobs(
        self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]] | None = None
    ) -> list[list[float]]:
        """Log-probs (nats, temperature 1) of the tokens at ``positions[i]`` of row i of token ids, on every rank.

        By default of all tokens but the first of each row.
        """
        microbatches = self._whole(scoring_batch(rows, positions))
        values: dict[int, list[float]] = {}
        for mb, out in zip(microbatches, self.strategy.token_outputs(microbatches), strict=True):
            for row, mask, logprobs in zip(mb["row_ids"].tolist(), mb["loss_mask"], out.logprobs, strict=True):
                values[row] = logprobs[mask.to(logprobs.device)].tolist()
        return [values[row] for row in range(len(rows))]

    def _whole(self, batch: Batch, *, experts: bool = True) -> MicroBatches:
        return batch.microbatches(self.max_tokens_per_mb, packed=self.strategy.packs, experts=experts)
