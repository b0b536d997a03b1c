"""What a program reads of one micro-batch: its rows side by side as one packed row, or padded as they came.

Losses and metrics always see the caller's rows [B, T]; only the model computes on packed tokens. So whatever an
algorithm does per row (ratios, means, counts) needs to know nothing of packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .logprobs import scatter
from .outputs import MicroBatch, TokenOutputs


class Segments:
    """Where rows begin and end in a packed row: ``lengths`` of each, ``offsets`` [n + 1] int32, ``longest``; whether
    it is a ``single`` row.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.longest = max(self.lengths)
        # Kept, not derived: compiled layers look at it, and would be compiled anew for every number of rows.
        self.single = len(self.lengths) == 1
        starts = torch.tensor([0, *self.lengths], dtype=torch.int64).cumsum(0)
        self.offsets = starts.to(device, torch.int32, non_blocking=True)


@dataclass(frozen=True, eq=False)
class TokenInputs:
    """One micro-batch as the model sees it, on its device.

    ``input_ids``, ``labels`` int64, ``loss_mask`` bool: [1, N] packed or [B, T] padded. ``position_ids`` [1, N] int64
    start at 0 with every row. ``segments`` is None for padded rows, which causal attention alone keeps apart.
    ``real`` [B, T] bool marks the caller's tokens that the packed row holds, in order.
    """

    input_ids: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    rows: tuple[int, int]
    segments: Segments | None = None
    real: Tensor | None = None

    @classmethod
    def padded(cls, mb: MicroBatch, device: torch.device, multiple: int = 1) -> TokenInputs:
        """Rows as they are, right-padded with zeros to a ``multiple`` of tokens."""
        rows, width = mb["input_ids"].shape
        fill = -width % multiple
        ids, labels, mask = (
            torch.nn.functional.pad(mb[key], (0, fill)).to(device, non_blocking=True)
            for key in ("input_ids", "labels", "loss_mask")
        )
        positions = torch.arange(width + fill, device=device)[None]
        return cls(ids, labels, mask, positions, (rows, width))

    @classmethod
    def packed(cls, mb: MicroBatch, device: torch.device, multiple: int = 1) -> TokenInputs:
        """Rows side by side without their padding, zero-padded at the end to a ``multiple`` of tokens.

        ``mb["lengths"]`` [B] int64 says how long each row is; without it rows are taken whole. Rows that have no
        padding stay as they are: attention over equal rows at once is quicker than over one after the other.
        """
        rows, width = mb["input_ids"].shape
        lengths = mb["lengths"].tolist() if "lengths" in mb else [width] * rows
        if min(lengths) == width:
            return cls.padded(mb, device, multiple)
        real = torch.arange(width) < torch.tensor(lengths)[:, None]
        fill = -sum(lengths) % multiple
        ids, labels, mask = (
            torch.nn.functional.pad(mb[key].cpu()[real][None], (0, fill)).to(device, non_blocking=True)
            for key in ("input_ids", "labels", "loss_mask")
        )
        parts = [*lengths, fill] if fill else lengths
        positions = torch.cat([torch.arange(length) for length in parts])[None].to(device, non_blocking=True)
        return cls(ids, labels, mask, positions, (rows, width), Segments(parts, device), real.to(device))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens a row that the model computes."""
        return int(self.input_ids.shape[0]), int(self.input_ids.shape[1])

    def outputs(self, found: Tensor) -> TokenOutputs:
        """Log-probs and entropy on the caller's rows from what the model gave, ``shape`` x 2 float32."""
        if self.real is None:
            rows, width = self.rows
            cut = found[:rows, :width]
            return TokenOutputs(cut[..., 0], cut[..., 1])
        flat = found[0, : sum(self.segments.lengths)] if self.segments is not None else found[0]
        return TokenOutputs(scatter(flat[:, 0], self.real), scatter(flat[:, 1], self.real))
