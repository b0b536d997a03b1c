"""The stage at which an algorithm sees all trained tokens of a batch at once: `PolicyGradient.finish`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .rows import Row

Array = npt.NDArray[Any]


class Finishing(Protocol):
    """The part of an algorithm that this stage uses."""

    def finish(self, tokens: Mapping[str, Tensor], version: int) -> dict[str, Tensor]: ...


def finished_rows(rows: Sequence[Row], algorithm: Finishing, version: int) -> tuple[list[Row], frozenset[str]]:
    """The rows with what ``algorithm.finish`` makes of all their trained tokens, and the names of columns it added.

    Its result does not depend on how the batch is cut afterwards, because every rank has the whole batch and computes
    the same. Raises ValueError when a column has another length than the tokens.
    """
    if not rows:
        return [], frozenset()
    found = algorithm.finish(_tokens(rows), version)
    sizes = [int(row.loss_mask.sum()) for row in rows]
    parts: dict[str, list[Array]] = {}
    for name, values in found.items():
        if len(values) != sum(sizes):
            raise ValueError(f"{name} of the whole batch: {len(values)} values for {sum(sizes)} trained tokens")
        flat = values.detach().cpu().numpy().astype(np.float32)
        parts[name] = np.split(flat, np.cumsum(sizes)[:-1])
    own = {name: [_spread(row, part) for row, part in zip(rows, split, strict=True)] for name, split in parts.items()}
    advantages = own.pop("advantages", [row.advantages for row in rows])
    finished = [
        replace(row, advantages=advantages[i], columns={**row.columns, **{name: own[name][i] for name in own}})
        for i, row in enumerate(rows)
    ]
    return finished, frozenset(own)


def _tokens(rows: Sequence[Row]) -> dict[str, Tensor]:
    """The columns [n] of the trained tokens, row after row (see ``PolicyGradient.finish``)."""
    masks = [row.loss_mask for row in rows]
    sizes = [int(mask.sum()) for mask in masks]

    def flat(columns: Sequence[Array]) -> Tensor:
        return torch.from_numpy(np.concatenate([c[m] for c, m in zip(columns, masks, strict=True)]).astype(np.float64))

    def of_rows(values: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.int64), sizes))

    return {
        "advantages": flat([row.advantages for row in rows]),
        "behaviour_logprobs": flat([row.behaviour_logprobs for row in rows]),
        "row_ids": of_rows([row.row_id for row in rows]),
        "groups": of_rows([row.group for row in rows]),
        "positions": torch.from_numpy(np.concatenate([np.flatnonzero(mask) for mask in masks]).astype(np.int64)),
    } | {name: flat([row.columns[name] for row in rows]) for name in rows[0].columns}


def _spread(row: Row, values: Array) -> Array:
    column = np.zeros(len(row), np.float32)
    column[row.loss_mask] = values
    return column
