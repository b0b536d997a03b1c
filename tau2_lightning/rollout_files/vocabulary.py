"""The text of every token, once for a run: kept episodes hold numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tau2_lightning.durable import write_durably

FILE = "vocabulary.parquet"


def vocabulary_file(folder: Path, tokenizer: Any) -> None:
    """Write the text of each token of ``tokenizer`` (a transformers tokenizer), by its number.

    A token that is a part of a character has the replacement character in its text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = len(tokenizer)
    texts = [_text(tokenizer, token) for token in range(size)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(texts, type=pa.string())}), sink, compression="zstd")
    write_durably(folder / FILE, sink.getvalue())


def read_vocabulary(folder: Path) -> list[str]:
    """The text of each token by its number; empty where the run has written none."""
    import pyarrow.parquet as pq

    path = folder / FILE
    texts: list[str] = pq.read_table(path).column("text").to_pylist() if path.is_file() else []
    return texts


def _text(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text.encode("utf-8", "replace").decode()
