"""The wire and file format of a batch: safetensors bytes with a JSON header, so that reading them runs no code.

Segments are written once each, with the index of their parent; rows name the segment they end in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tau2_lightning.segments import Experts, Segment

from .rows import Row

FORMAT = "tau2_lightning.batch/1"
_ROW_ARRAYS = {"loss_mask": np.bool_, "behaviour_logprobs": np.float32, "advantages": np.float32, "versions": np.int32}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Head:
    """The scalar fields of a batch (see `Batch`)."""

    n_tokens: int
    n_rows: int
    version: int
    statistics: Mapping[str, float]
    columns: tuple[str, ...]
    n_episodes: int


def encode(rows: Sequence[Row], segments: Sequence[Segment], head: Head) -> bytes:
    """Write a few long arrays with lengths beside them. ``segments`` hold those of the rows, parents first.

    Raises ValueError when a row's optional columns are not the header's.
    """
    columns = head.columns
    if any(set(row.columns) != set(columns) for row in rows):
        raise ValueError(f"the optional columns of some row are not the batch's ({', '.join(columns) or 'none'})")
    index: dict[Segment | None, int] = {None: -1} | {segment: i for i, segment in enumerate(segments)}
    arrays = {
        "segment_parents": np.array([index[s.parent] for s in segments], np.int64),
        "segment_lengths": np.array([len(s.token_ids) for s in segments], np.int64),
        "segment_tokens": _joined([s.token_ids for s in segments], np.int32),
        "row_ids": np.array([r.row_id for r in rows], np.int64),
        "row_groups": np.array([r.group for r in rows], np.int64),
        "row_leaves": np.array([index[r.leaf] for r in rows], np.int64),
        "row_lengths": np.array([len(r) for r in rows], np.int64),
        "row_episodes": np.array([r.episode for r in rows], np.int64),
        "row_shares": np.array([r.share for r in rows], np.float64),
    }
    arrays |= {f"row.{name}": _joined([getattr(r, name) for r in rows], dtype) for name, dtype in _ROW_ARRAYS.items()}
    arrays |= {f"column.{name}": _joined([r.columns[name] for r in rows], np.float32) for name in columns}
    recorded = [s.experts for s in segments if s.experts is not None]
    if recorded:
        arrays["segment_recorded"] = np.array([s.experts is not None for s in segments], np.bool_)
        arrays["segment_experts"] = np.concatenate(recorded)
    return bytes(save(arrays, metadata={"format": FORMAT, "batch": json.dumps(asdict(head))}))


def decode(data: bytes) -> tuple[tuple[Row, ...], Head]:
    """The rows and the header that ``encode`` wrote. Raises ValueError for bytes that are not a well-formed batch."""
    try:
        arrays = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise ValueError(f"format {metadata['format']!r} is not {FORMAT!r}")
        head = _head(json.loads(metadata["batch"]))
        rows = _rows(arrays, _segments(arrays), head.columns)
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"not a batch: {error}") from error
    return rows, head


def _head(fields: dict[str, Any]) -> Head:
    # Bytes of an earlier version do not number episodes: each of their rows is one.
    return Head(**{"n_episodes": fields["n_rows"], **fields, "columns": tuple(fields["columns"])})


def _segments(arrays: Mapping[str, Array]) -> list[Segment]:
    segments: list[Segment] = []
    tokens = _split(arrays["segment_tokens"], arrays["segment_lengths"])
    for parent, own, experts in zip(arrays["segment_parents"].tolist(), tokens, _experts(arrays), strict=True):
        if not -1 <= parent < len(segments):
            raise ValueError("the forest's links are broken")
        segments.append(Segment.of(own, segments[parent] if parent >= 0 else None, experts))
    return segments


def _experts(arrays: Mapping[str, Array]) -> list[Experts | None]:
    """The recorded experts of each segment; only batches of mixture-of-experts models have any."""
    lengths = arrays["segment_lengths"]
    if "segment_recorded" not in arrays:
        return [None] * len(lengths)
    recorded = arrays["segment_recorded"]
    parts = iter(_split(arrays["segment_experts"], lengths[recorded]))
    return [next(parts) if known else None for known in recorded.tolist()]


def _rows(arrays: Mapping[str, Array], segments: Sequence[Segment], columns: Sequence[str]) -> tuple[Row, ...]:
    lengths, ids, leaves = (arrays[name] for name in ("row_lengths", "row_ids", "row_leaves"))
    episodes = arrays.get("row_episodes", np.full(len(ids), -1, np.int64)).tolist()
    shares = arrays.get("row_shares", np.ones(len(ids))).tolist()
    groups = arrays.get("row_groups", np.zeros(len(ids), np.int64)).tolist()  # files recorded earlier have none
    own = {name: _split(arrays[f"row.{name}"], lengths) for name in _ROW_ARRAYS}
    optional = {name: _split(arrays[f"column.{name}"], lengths) for name in columns}
    rows = []
    for i, (row_id, leaf) in enumerate(zip(ids.tolist(), leaves.tolist(), strict=True)):
        if not 0 <= leaf < len(segments):
            raise ValueError("the forest's links are broken")
        if segments[leaf].end != int(lengths[i]):
            raise ValueError("a row's arrays and its tokens differ in length")
        data = {name: parts[i] for name, parts in own.items()}
        extra = {name: parts[i] for name, parts in optional.items()}
        group, episode, share = groups[i], episodes[i], shares[i]
        rows.append(Row(row_id, segments[leaf], **data, columns=extra, group=group, episode=episode, share=share))
    return tuple(rows)


def _joined(parts: Sequence[Array], dtype: type) -> Array:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)


def _split(values: Array, lengths: Array) -> list[Array]:
    if int(lengths.sum()) != len(values) or (lengths < 0).any():
        raise ValueError(f"{len(values)} values do not fit lengths that sum to {int(lengths.sum())}")
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
