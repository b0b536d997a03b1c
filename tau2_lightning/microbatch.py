"""The collated micro-batch: the input of a model and of a loss, made once by `batch.collate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

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

    def cut(self, start: int, end: int | None = None) -> RoutedExperts:
        """Those of the positions ``[start, end)``."""
        return RoutedExperts(self.index[:, start:end], self.known[:, start:end])


class Node(NamedTuple):
    """A run of tokens of a packed micro-batch without branches inside: ``[start, end)``.

    ``[end, below)`` are the tokens that continue it, in all its branches. A token sees the earlier tokens of its own
    node, and all tokens of the nodes that its node continues.
    """

    start: int
    end: int
    below: int


@dataclass(frozen=True, eq=False)
class Trunk:
    """Tokens that all rows of several micro-batches begin with: ``input_ids`` [1, P] int64, behind those of ``parent``.

    They go through the model once for all these micro-batches, which share this object; a loss asks for no label that
    they predict. ``routed`` are their experts, where they are known.
    """

    input_ids: Tensor
    routed: RoutedExperts | None = None
    parent: Trunk | None = None

    @property
    def length(self) -> int:
        """Number of tokens, with those of its parents."""
        return self.input_ids.shape[1] + (self.parent.length if self.parent is not None else 0)

    def path(self) -> list[Trunk]:
        """Its parents from the first on, and itself."""
        return [*(self.parent.path() if self.parent is not None else ()), self]


@dataclass(frozen=True, eq=False)
class ModelRows:
    """The tokens of a micro-batch in the shape that a model computes them, and the labels that a loss asks for.

    Padded: ``input_ids`` int64 are the rows [B, T] as losses see them; ``position_ids`` and ``nodes`` are None. Packed:
    they are [1, N], without padding, and every token stands once, also where several rows share it; ``position_ids``
    [1, N] int64 count from the start of each token's row, and ``nodes`` hold all tokens in order (depth first).

    ``at`` [L] int64 are indices into the flattened ``input_ids`` and ``labels`` [L] int64 the token that follows
    each; a token may have several labels. ``trained`` [B, T] bool marks the labels of the rows, and ``places`` [M]
    int64 says for each of the M marked ones, row by row, which of the L pairs it is. The tokens continue ``trunk``, and
    do not include it. ``routed`` has the shape of ``input_ids``, and is None where no experts are known.
    """

    input_ids: Tensor
    at: Tensor
    labels: Tensor
    trained: Tensor
    places: Tensor
    position_ids: Tensor | None = None
    nodes: tuple[Node, ...] | None = None
    trunk: Trunk | None = None
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
        """Separate rows [B, T] of these ``lengths``, packed where that is asked for and saves padding.

        Rows of one length stay padded: attention over equal rows together is quicker than over one after the other.
        """
        width = input_ids.shape[1]
        wanted, places = labels[loss_mask], torch.arange(int(loss_mask.sum()))
        if not packed or min(lengths) == width:
            return cls(input_ids, loss_mask.flatten().nonzero()[:, 0], wanted, loss_mask, places, routed=routed)
        sizes = torch.tensor(list(lengths))
        real = torch.arange(width) < sizes[:, None]
        if routed is not None:
            routed = RoutedExperts(routed.index[real][None], routed.known[real][None])
        ends = sizes.cumsum(0).tolist()
        nodes = tuple(Node(end - size, end, end) for end, size in zip(ends, lengths, strict=True))
        positions = torch.cat([torch.arange(size) for size in lengths])[None]
        at = loss_mask[real].nonzero()[:, 0]
        return cls(input_ids[real][None], at, wanted, loss_mask, places, positions, nodes, routed=routed)

    @classmethod
    def of_trunk(cls, trunk: Trunk) -> ModelRows:
        """The tokens of a trunk as one row without labels, which continues the trunk's parent."""
        length = trunk.input_ids.shape[1]
        nothing = torch.zeros(0, dtype=torch.int64)
        positions, nodes = torch.arange(trunk.length - length, trunk.length)[None], (Node(0, length, length),)
        untrained = torch.zeros(1, 1, dtype=torch.bool)
        ids, parent = trunk.input_ids, trunk.parent
        return cls(ids, nothing, nothing, untrained, nothing, positions, nodes, parent, trunk.routed)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width [B, T] of the padded form, in which losses see the rows."""
        rows, width = self.trained.shape
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
