"""Rows of a batch, or supervised dialogues, collated into one micro-batch: the only place that pads or packs tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from tau2_lightning.microbatch import MicroBatch, ModelRows, Trunk

from .experts import collated_experts
from .rows import Row
from .shared_prefixes import Layout, shared_rows


def collate(
    rows: Sequence[Row],
    *,
    n_tokens: int,
    n_rows: int,
    n_episodes: int,
    version: int,
    columns: Sequence[str] = (),
    packed: bool = False,
    shared: bool = False,
    trunk: Trunk | None = None,
    experts: bool = True,
) -> MicroBatch:
    """One micro-batch of ``rows`` (shapes and dtypes: `MicroBatch`), written straight from their segments.

    ``n_tokens``, ``n_rows``, ``n_episodes`` and ``version`` are the whole optimizer step's. ``columns`` names the
    optional columns of the rows. ``packed`` lays the rows side by side for the model; with ``shared``, tokens that rows
    share are there once, where that saves any, and those of a ``trunk`` that all rows begin with are left out.
    ``experts``: with the experts that the rows' segments record. Without rows it is an empty micro-batch.
    """
    height, width = max(len(rows), 1), max((len(row) for row in rows), default=1)
    ids = np.zeros((height, width), np.int64)
    labels = np.zeros_like(ids)
    floats = {name: np.zeros((height, width), np.float32) for name in ("behaviour_logprobs", "advantages", *columns)}
    mask = np.zeros((height, width), np.bool_)
    versions = np.full((height, width), -1, np.int32)
    for i, row in enumerate(rows):
        n = len(row)
        for segment in row.leaf.path():
            ids[i, segment.start : segment.end] = segment.token_ids
        labels[i, : n - 1] = ids[i, 1:n]
        mask[i, :n], versions[i, :n] = row.loss_mask, row.versions
        floats["behaviour_logprobs"][i, :n], floats["advantages"][i, :n] = row.behaviour_logprobs, row.advantages
        for name in columns:
            floats[name][i, :n] = row.columns[name]
    lengths = [len(row) for row in rows] or [1]
    tokens = torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(mask)
    layout = Layout.of([row.leaf for row in rows]) if packed and shared and rows else None
    if layout is not None and (trunk is not None or layout.tokens < sum(lengths)):
        model = shared_rows(rows, layout, width, trunk, experts=experts)
    else:
        routed = collated_experts(rows, width) if experts else None
        model = ModelRows.of(*tokens, lengths, packed=packed, routed=routed)
    found = {
        "model": model,
        "input_ids": tokens[0],
        "labels": tokens[1],
        "loss_mask": tokens[2],
        "versions": torch.from_numpy(versions),
        **{name: torch.from_numpy(values) for name, values in floats.items()},
        "row_ids": torch.tensor([row.row_id for row in rows] or [-1], dtype=torch.int64),
        "lengths": torch.tensor(lengths, dtype=torch.int64),
        "n_tokens": torch.tensor(float(n_tokens)),
        "n_rows": torch.tensor(float(n_rows)),
        "n_episodes": torch.tensor(float(n_episodes)),
        "row_shares": torch.tensor([row.share for row in rows] or [1.0], dtype=torch.float32),
        "version": torch.tensor(version, dtype=torch.int32),
    }
    return cast("MicroBatch", found)  # the optional columns' names are not literals
