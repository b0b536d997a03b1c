"""A micro-batch's model view on the device: the collated rows, filled up to the multiple that a layout needs.

Losses and metrics always see the caller's rows [B, T]; only the model computes on packed tokens. So what an algorithm
does per row (ratios, means, counts) does not depend on packing, nor on which rows share a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tau2_lightning.microbatch import MicroBatch, ModelRows, Node, RoutedExperts

from .kept_prefix import KeptPrefix, Role
from .logprobs import scatter
from .outputs import TokenOutputs


class Segments:
    """The nodes of a packed micro-batch (`ModelRows.nodes`), for attention.

    ``lengths`` of the nodes, ``offsets`` [n + 1] int32 of their starts and the end, the ``longest`` length; whether it
    ``branches``, and whether it is ``causal``: one row by itself. ``prefix`` is a kept trunk that these tokens
    continue. ``own`` is the trunk that they are themselves, which is recorded or given its gradients (``role``).
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        device: torch.device,
        prefix: KeptPrefix | None = None,
        own: KeptPrefix | None = None,
        role: Role = "record",
    ) -> None:
        self.nodes = tuple(nodes)
        self.lengths = [node.end - node.start for node in self.nodes]
        self.longest = max(self.lengths)
        # Stored, not derived: compiled layers read it, and would be compiled anew for every number of rows.
        self.causal = len(self.lengths) == 1 and prefix is None and own is None
        self.branches = any(node.below > node.end for node in self.nodes)
        starts = torch.tensor([0, *self.lengths], dtype=torch.int64).cumsum(0)
        self.offsets = starts.to(device, torch.int32, non_blocking=True)
        self._device = device
        self.flex_mask: Any = None  # of FlexAttention, made by the first layer for all
        self.prefix, self.own, self.role = prefix, own, role

    @property
    def before(self) -> int:
        """Number of tokens of a kept prefix that all these tokens continue."""
        return self.prefix.length if self.prefix is not None else 0

    def below(self) -> Tensor:
        """[N] int32: token j is seen by the tokens from j to ``below[j]``, which it excludes."""
        ends = torch.tensor([node.below for node in self.nodes], dtype=torch.int32)
        return ends.repeat_interleave(torch.tensor(self.lengths)).to(self._device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Targets:
    """The labels that a loss asks for, cut by the slices of the sequence that context ranks hold.

    ``at`` and ``labels`` are [c, L] int64: row r are indices into the flattened slice r, filled up with zeros to the
    largest number of any slice, at least 1. ``pick`` [M] int64 are, for the caller's M trained labels in order, the
    indices of their results in the flattened [c, L].
    """

    at: Tensor
    labels: Tensor
    pick: Tensor

    @classmethod
    def of(cls, rows: ModelRows, width: int, slices: int, device: torch.device) -> Targets:
        """The targets of ``rows``, each of which is filled up to ``width`` tokens and cut into ``slices``."""
        own = rows.input_ids.shape[1]
        row, column = rows.at // own, rows.at % own
        part = width // slices
        holder = column // part
        at = row * part + column % part
        counts = torch.bincount(holder, minlength=slices)
        size = max(1, int(counts.max()))
        order = holder.argsort(stable=True)
        place = torch.empty_like(holder)
        starts = counts.cumsum(0) - counts
        place[order] = torch.arange(len(holder)) - starts[holder[order]]
        flat = holder * size + place
        filled = torch.zeros(2, slices * size, dtype=torch.int64)
        filled[0, flat], filled[1, flat] = at, rows.labels
        moved = filled.view(2, slices, size).to(device, non_blocking=True)
        return cls(moved[0], moved[1], flat[rows.places].to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """The model view of one micro-batch on the model's device.

    ``input_ids`` int64: [1, N] packed or [B, T] padded, N or T a multiple of what the layout splits the sequence by.
    ``position_ids`` [1, N] int64 count from the start of each row. ``segments`` is None for padded rows, which causal
    attention alone keeps apart. ``trained`` [B, T] bool marks the trained labels of the caller's rows. ``routed`` has
    the shape of ``input_ids`` and stays on the host: each program moves what its layers need, when they need it.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Targets
    trained: Tensor
    segments: Segments | None = None
    routed: RoutedExperts | None = None

    @classmethod
    def of(
        cls,
        rows: ModelRows,
        device: torch.device,
        multiple: int = 1,
        slices: int = 1,
        *,
        prefix: KeptPrefix | None = None,
        own: KeptPrefix | None = None,
        role: Role = "record",
    ) -> TokenInputs:
        """Move collated rows to ``device``, zero-padded at the end to a ``multiple`` of tokens.

        The padding of a packed row is a separate row. ``slices`` is the number of context ranks, which divides
        ``multiple``. ``prefix``, ``own`` and ``role`` are described in `Segments`.
        """
        size = rows.input_ids.shape[1]
        fill = -size % multiple
        ids = _filled(rows.input_ids, fill).to(device, non_blocking=True)
        targets = Targets.of(rows, size + fill, slices, device)
        trained = rows.trained.to(device, non_blocking=True)
        routed = _padded(rows.routed, fill)
        if rows.nodes is None or rows.position_ids is None:
            return cls(ids, torch.arange(size + fill, device=device)[None], targets, trained, routed=routed)
        nodes, positions = rows.nodes, rows.position_ids
        if fill:
            nodes = (*nodes, Node(size, size + fill, size + fill))
            positions = torch.cat([positions, torch.arange(fill)[None]], 1)
        segments = Segments(nodes, device, prefix, own, role)
        return cls(ids, positions.to(device, non_blocking=True), targets, trained, segments, routed)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of tokens per row that the model computes."""
        return int(self.input_ids.shape[0]), int(self.input_ids.shape[1])

    def outputs(self, found: Tensor) -> TokenOutputs:
        """Log-probs and entropy on the caller's rows from the model's output, [1, c * L, 2] float32."""
        values = found[0, self.targets.pick]
        return TokenOutputs(scatter(values[:, 0], self.trained), scatter(values[:, 1], self.trained))


def loss_view(mb: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch as losses see it on ``device``; ``model`` stays where it is."""
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in mb.items()
    }
    return cast("MicroBatch", moved)


def _filled(ids: Tensor, fill: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, fill)) if fill else ids


def _padded(routed: RoutedExperts | None, fill: int) -> RoutedExperts | None:
    if routed is None or not fill:
        return routed
    pad = torch.nn.functional.pad
    return RoutedExperts(pad(routed.index, (0, 0, 0, 0, 0, fill)), pad(routed.known, (0, fill)))
