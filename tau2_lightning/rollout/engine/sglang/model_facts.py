"""What a model's ``config.json`` tells before a server starts: the number of token ids, the size of its cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _text_config(folder: Path) -> dict[str, Any]:
    """The configuration of the text model; {} where there is no such file (a model of the hub)."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    text: dict[str, Any] = config.get("text_config") or config
    return text


def vocabulary_of(folder: Path) -> int | None:
    """Number of token ids that the model at ``folder`` knows; None if its configuration does not say."""
    return _text_config(folder).get("vocab_size")


def kv_bytes_per_token(folder: Path, dtype: str) -> int | None:
    """Bytes of keys and values of one token: 2 x layers x heads of keys x their size x bytes of a number.

    None if the model's configuration does not say.
    """
    config = _text_config(folder)
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads:
        return None
    keys = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or config["hidden_size"] // heads
    if dtype == "auto":
        dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return int(2 * layers * keys * head * (4 if dtype == "float32" else 2))
