"""A micro-batch's model view on the device: the collated rows, filled up to the multiple that a layout needs.

Losses and metrics always see the caller's rows [B, T]; only the model computes on packed tokens. So what an algorithm
does per row (ratios, means, counts) does not depend on packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tau2_lightning.microbatch import ModelRows, RoutedExperts

from .logprobs import scatter
from .outputs import TokenOutputs


class Segments:
    """The rows inside a packed row: ``lengths`` of each, ``offsets`` [n + 1] int32 of their starts and the end,
    ``longest`` length, and whether it is a ``single`` row.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.longest = max(self.lengths)
        # Stored, not derived: compiled layers read it, and would be compiled anew for every number of rows.
        self.single = len(self.lengths) == 1
        starts = torch.tensor([0, *self.lengths], dtype=torch.int64).cumsum(0)
        self.offsets = starts.to(device, torch.int32, non_blocking=True)


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """The model view of one micro-batch on the model's device.

    ``input_ids``, ``labels`` int64, ``loss_mask`` bool: [1, N] packed or [B, T] padded, N or T a multiple of what the
    layout splits the sequence by. ``position_ids`` [1, N] int64 start at 0 with every row. ``rows`` is the shape of the
    caller's rows. ``segments`` is None for padded rows, which causal attention alone keeps apart. ``real`` [B, T] bool
    marks the caller's tokens that the packed row holds, in order. ``routed`` has the shape of
    ``input_ids`` and stays on the host: each program moves what its layers need, when they need it.
    """

    input_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    rows: tuple[int, int]
    segments: Segments | None = None
    real: Tensor | None = None
    routed: RoutedExperts | None = None

    @classmethod
    def of(cls, rows: ModelRows, device: torch.device, multiple: int = 1) -> TokenInputs:
        """Move collated rows to ``device``, zero-padded at the end to a ``multiple`` of tokens.

        The padding of a packed row is a separate row.
        """
        fill = -rows.input_ids.shape[1] % multiple
        ids, labels, mask = (
            (torch.nn.functional.pad(tensor, (0, fill)) if fill else tensor).to(device, non_blocking=True)
            for tensor in (rows.input_ids, rows.labels, rows.loss_mask)
        )
        routed = _padded(rows.routed, fill)
        if rows.lengths is None or rows.real is None:
            positions = torch.arange(ids.shape[1], device=device)[None]
            return cls(ids, labels, mask, positions, rows.shape, routed=routed)
        lengths = [*rows.lengths, fill] if fill else rows.lengths
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device, non_blocking=True)
        return cls(ids, labels, mask, positions, rows.shape, Segments(lengths, device), rows.real.to(device), routed)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of tokens per row that the model computes."""
        return int(self.input_ids.shape[0]), int(self.input_ids.shape[1])

    def outputs(self, found: Tensor) -> TokenOutputs:
        """Log-probs and entropy on the caller's rows from the model's output, ``shape`` x 2 float32."""
        if self.real is None:
            rows, width = self.rows
            cut = found[:rows, :width]
            return TokenOutputs(cut[..., 0], cut[..., 1])
        flat = found[0, : sum(self.segments.lengths)] if self.segments is not None else found[0]
        return TokenOutputs(scatter(flat[:, 0], self.real), scatter(flat[:, 1], self.real))


def _padded(routed: RoutedExperts | None, fill: int) -> RoutedExperts | None:
    if routed is None or not fill:
        return routed
    pad = torch.nn.functional.pad
    return RoutedExperts(pad(routed.index, (0, 0, 0, 0, 0, fill)), pad(routed.known, (0, fill)))
