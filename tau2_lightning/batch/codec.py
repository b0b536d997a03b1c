"""Batches as safetensors bytes with a JSON header: nothing in them can run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .rows import Row, Segment, flatten

if TYPE_CHECKING:
    from .batch import Batch

FORMAT = "tau2_lightning.batch/1"
_ROW_ARRAYS = {"loss_mask": np.bool_, "behaviour_logprobs": np.float32, "advantages": np.float32, "versions": np.int32}


def encode(batch: Batch) -> bytes:
    """Flatten a batch into a few long arrays with lengths beside them."""
    rows, segments = batch.rows, batch.segments
    columns = list(batch.columns)
    if any(set(row.columns) != set(columns) for row in rows):
        raise ValueError(f"the optional columns of some row are not the batch's ({', '.join(columns) or 'none'})")

    def joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)

    arrays = {
        "segment_parents": np.array([s.parent for s in segments], np.int64),
        "segment_lengths": np.array([len(s.token_ids) for s in segments], np.int64),
        "segment_tokens": joined([s.token_ids for s in segments], np.int32),
        "row_ids": np.array([r.row_id for r in rows], np.int64),
        "row_leaves": np.array([r.leaf for r in rows], np.int64),
        "row_lengths": np.array([len(r) for r in rows], np.int64),
    }
    arrays |= {f"row.{name}": joined([getattr(r, name) for r in rows], dtype) for name, dtype in _ROW_ARRAYS.items()}
    arrays |= {f"column.{name}": joined([r.columns[name] for r in rows], np.float32) for name in columns}
    head: dict[str, Any] = {"n_tokens": batch.n_tokens, "n_rows": batch.n_rows, "version": batch.version}
    head |= {"statistics": dict(batch.statistics), "columns": columns}
    return bytes(save(arrays, metadata={"format": FORMAT, "batch": json.dumps(head)}))


def decode(data: bytes) -> dict[str, Any]:
    """The fields of the batch that ``encode`` wrote. Raises ValueError for bytes that are not a well-formed batch."""
    try:
        arrays = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r} is not {FORMAT!r}")
        head = json.loads(metadata["batch"])
        tokens = _split(arrays["segment_tokens"], arrays["segment_lengths"])
        parents = arrays["segment_parents"].tolist()
        lengths = arrays["row_lengths"]
        names = [*_ROW_ARRAYS, *head["columns"]]
        parts = {n: _split(arrays[f"row.{n}" if n in _ROW_ARRAYS else f"column.{n}"], lengths) for n in names}
        ids, leaves = arrays["row_ids"].tolist(), arrays["row_leaves"].tolist()
        if any(not -1 <= p < i for i, p in enumerate(parents)) or any(not 0 <= k < len(parents) for k in leaves):
            raise ValueError("the forest's links are broken")
        segments = tuple(Segment(p, t) for p, t in zip(parents, tokens, strict=True))
        rows = tuple(
            Row(
                row_id=ids[i],
                leaf=leaves[i],
                columns={name: parts[name][i] for name in head["columns"]},
                **{name: parts[name][i] for name in _ROW_ARRAYS},
            )
            for i in range(len(lengths))
        )
        if any(len(flatten(segments, row.leaf)) != len(row) for row in rows):
            raise ValueError("a row's arrays and its tokens differ in length")
        counts = {name: head[name] for name in ("n_tokens", "n_rows", "version", "statistics")}
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"not a batch: {error}") from error
    return {"segments": segments, "rows": rows, "columns": tuple(head["columns"]), **counts}


def _split(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    if int(lengths.sum()) != len(values) or (lengths < 0).any():
        raise ValueError(f"{len(values)} values do not fit lengths that sum to {int(lengths.sum())}")
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
