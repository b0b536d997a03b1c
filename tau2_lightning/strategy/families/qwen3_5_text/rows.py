"""Linear attention over packed rows: its state and its convolution start anew with every row."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def keep_rows_apart(layer: nn.Module) -> None:
    """`Family.prepare`: make the linear attention of ``layer``, if it has one, compute row by row."""
    mixer: Any = getattr(layer, "linear_attn", None)
    if mixer is not None:
        mixer.forward = MethodType(_forward, mixer)


def _row_by_row(module: Any, hidden_states: Tensor, segments: Any = None, **kwargs: Any) -> Tensor:
    whole = type(module).forward
    if segments is None:
        out: Tensor = whole(module, hidden_states, **kwargs)
        return out
    if segments.branches or segments.before:
        raise ValueError("linear attention does not share tokens between rows: its state has one past only")
    rows = torch.split(hidden_states, segments.lengths, dim=1)
    return torch.cat([whole(module, row, **kwargs) for row in rows], dim=1)


# Lengths change with every micro-batch, so a compiler cannot specialise on them.
_uncompiled: Any = torch.compiler.disable
_forward = _uncompiled(_row_by_row)
