"""The collated micro-batch: the input of a model and of a loss, made once by `batch.collate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RoutedExperts:
    """The experts that the engine chose, for the trainer's routers to choose again (``strategy.replay``).

    ``index`` [B, T, layers, k] uint8 or int16 (packed: [1, N, layers, k]) numbers the experts at each position; only
    positions marked in ``known`` [B, T] bool have any. Both stay on the host.
    """

    index: Tensor
    known: Tensor


@dataclass(frozen=True, eq=False)
class ModelRows:
    """The tokens of a micro-batch in the shape that a model computes them.

    Padded: ``input_ids`` and ``labels`` int64 and ``loss_mask`` bool are [B, T], as losses see them, and ``lengths``
    and ``real`` are None. Packed: they are [1, N], the rows side by side without their padding; ``lengths`` holds the
    N tokens' rows in order, ``real`` [B, T] bool marks the tokens of the padded rows that the packed row holds.
    ``routed`` has the shape of ``input_ids``, and is None where no experts are known.
    """

    input_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    lengths: tuple[int, ...] | None = None
    real: Tensor | None = None
    routed: RoutedExperts | None = None

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        labels: Tensor,
        loss_mask: Tensor,
        lengths: Sequence[int],
        *,
        packed: bool,
        routed: RoutedExperts | None = None,
    ) -> ModelRows:
        """The rows [B, T] of these ``lengths``, packed where that is asked for and saves padding.

        Rows of one length stay padded: attention over equal rows together is quicker than over one after the other.
        """
        width = input_ids.shape[1]
        if not packed or min(lengths) == width:
            return cls(input_ids, labels, loss_mask, routed=routed)
        real = torch.arange(width) < torch.tensor(list(lengths))[:, None]
        if routed is not None:
            routed = RoutedExperts(routed.index[real][None], routed.known[real][None])
        return cls(input_ids[real][None], labels[real][None], loss_mask[real][None], tuple(lengths), real, routed)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width [B, T] of the padded form, in which losses see the rows."""
        rows, width = (self.input_ids if self.real is None else self.real).shape
        return rows, width


class MicroBatch(TypedDict):
    """Rows that go through the model together.

    ``model`` is what the model computes on; the other keys are for losses and for bookkeeping by row. B rows are
    right-padded to T tokens; index t of a row describes its label, which is token t + 1. All tensors are on the host
    until a strategy moves them. A micro-batch without rows has one row of one padding token, ``row_ids`` -1 and nothing
    in ``loss_mask``.
    """

    model: ModelRows
    input_ids: Tensor
    """[B, T] int64, 0-padded."""
    labels: Tensor
    """[B, T] int64: ``input_ids`` shifted left by one, 0 at each row's end."""
    loss_mask: Tensor
    """[B, T] bool: the labels that are trained."""
    behaviour_logprobs: Tensor
    """[B, T] float32: log-probs (nats) under the policy that sampled, 0 outside ``loss_mask``."""
    advantages: Tensor
    """[B, T] float32, 0 outside ``loss_mask``."""
    versions: Tensor
    """[B, T] int32: weight version that sampled the label, -1 outside ``loss_mask``."""
    row_ids: Tensor
    """[B] int64: which row of the batch, -1 for padding rows."""
    lengths: Tensor
    """[B] int64: tokens of each row."""
    n_tokens: Tensor
    """float32 scalar: trained tokens of the whole optimizer step, over all ranks."""
    n_rows: Tensor
    """float32 scalar: rows of the whole optimizer step, over all ranks."""
    n_episodes: Tensor
    """float32 scalar: episodes of the whole optimizer step, over all ranks; an episode may have several rows."""
    row_shares: Tensor
    """[B] float32: the row's part of its episode's trained tokens."""
    version: Tensor
    """int32 scalar: the trainer's weight version."""
    proximal_logprobs: NotRequired[Tensor]
    """[B, T] float32, where the algorithm recomputes them."""
    reference_logprobs: NotRequired[Tensor]
    """[B, T] float32, where the algorithm needs them."""
    chosen: NotRequired[Tensor]
    """[B, T] float32: 1 at tokens that the algorithm chose over the whole batch (Clip-Cov, KL-Cov), else 0."""
