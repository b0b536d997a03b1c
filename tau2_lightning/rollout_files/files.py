"""One file of ``rollouts/``: Parquet, compressed with zstd.

Parquet, because a table of episodes then reads its columns only and never the dialogues, and because pandas, polars,
DuckDB and every other table program opens it. pyarrow is its reference implementation, and writes without the
interpreter's lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tau2_lightning.durable import write_durably

from .schema import ARRAYS, DIALOGUE_COLUMNS, FORMAT, JSON_COLUMNS, TEXTS, KeptEpisode, arrow_schema

_HEAD = b"tau2_lightning"
# Prompts of a group begin alike: a page that holds several rows is compressed across them.
_PAGE_BYTES = 4 << 20
_LEVEL = 3


def episodes_file(
    path: Path, episodes: Sequence[KeptEpisode], stamps: Mapping[str, Any], secrets: Sequence[str]
) -> int:
    """Write ``episodes`` to ``path``, whole or not at all; returns the bytes. Texts in ``secrets`` become ``***``.

    ``stamps`` are by domain: each episode is given that of its own when it is read.
    """
    import pyarrow as pa

    head = hidden(json.dumps({"format": FORMAT, "stamps": stamps}, default=str), secrets)
    schema = arrow_schema().with_metadata({_HEAD: head.encode()})
    columns = []
    for column in schema:
        values = [getattr(episode, column.name) for episode in episodes]
        if column.name in TEXTS:
            values = [hidden(_valid(value), secrets) for value in values]
        elif column.name in JSON_COLUMNS:
            values = [hidden(json.dumps(value, default=str), secrets) for value in values]
        columns.append(_lists(values, column.name) if column.name in ARRAYS else pa.array(values, type=column.type))
    return _write(path, pa.Table.from_arrays(columns, schema=schema))


def read_episodes(path: Path, *, dialogues: bool = True) -> list[KeptEpisode]:
    """The episodes of a file in order. Without ``dialogues``, messages, turns and tokens stay empty."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    head = json.loads((file.schema_arrow.metadata or {}).get(_HEAD, b"{}"))
    known = {*KeptEpisode.__dataclass_fields__}
    names = [name for name in file.schema_arrow.names if name in known and (dialogues or name not in DIALOGUE_COLUMNS)]
    table = file.read(columns=names)
    columns = {name: _values(table.column(name), name) for name in names}
    stamps = head.get("stamps", {})
    return [
        KeptEpisode(**{name: columns[name][at] for name in names}, stamp=stamps.get(columns["domain"][at], {}))
        for at in range(table.num_rows)
    ]


def read_stamps(path: Path) -> dict[str, Any]:
    """The stamps of a file, by domain."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {}).get(_HEAD, b"{}")).get("stamps", {})
    return found


def scores_file(path: Path, logprobs: Mapping[int, npt.NDArray[np.float32]]) -> int:
    """Write the trainer's log-probs of the trained tokens of each row, by `Row.row_id`; returns the bytes."""
    import pyarrow as pa

    ids = sorted(logprobs)
    rows, values = pa.array(ids, type=pa.int32()), _lists([logprobs[one] for one in ids], "logprobs")
    return _write(path, pa.Table.from_arrays([rows, values], names=["row_id", "logprobs"]))


def read_scores(path: Path) -> dict[int, npt.NDArray[np.float32]]:
    """What `scores_file` has written."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return dict(zip(table.column("row_id").to_pylist(), _values(table.column("logprobs"), "logprobs"), strict=True))


def hidden(text: str, secrets: Iterable[str]) -> str:
    """``text`` with ``***`` in the place of every secret."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, "***")
    return text


def _write(path: Path, table: Any) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    # A dictionary of tokens would hide from zstd that rows repeat each other.
    names = [field.name for field in table.schema if str(field.type) == "string"]
    texts = [name for name in names if name not in JSON_COLUMNS]
    pq.write_table(
        table, sink, compression="zstd", compression_level=_LEVEL, use_dictionary=texts, data_page_size=_PAGE_BYTES
    )
    content = sink.getvalue()
    write_durably(path, content)
    return int(content.size)


def _lists(values: Sequence[npt.NDArray[Any]], name: str) -> Any:
    """An Arrow list column from one array for each row, without a Python object for each value."""
    import pyarrow as pa

    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(one) for one in values], out=offsets[1:])
    flat = np.concatenate([np.zeros(0, ARRAYS[name]), *values]).astype(ARRAYS[name], copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _values(column: Any, name: str) -> list[Any]:
    if name in ARRAYS:
        lists = column.combine_chunks()
        if hasattr(lists, "chunks"):
            lists = lists.chunk(0) if lists.num_chunks else None
        if lists is None or not len(lists):
            return []
        offsets = lists.offsets.to_numpy()
        flat = lists.values.to_numpy(zero_copy_only=False)
        return [flat[start:end] for start, end in pairwise(offsets.tolist())]
    values: list[Any] = column.to_pylist()
    return [json.loads(value) for value in values] if name in JSON_COLUMNS else values


def _valid(text: str) -> str:
    """Lone surrogates have no place in UTF-8."""
    return text.encode("utf-8", "replace").decode()
