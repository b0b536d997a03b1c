"""What identifies a policy's tokenizer, as a short text."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import orjson

FILE = "tokenizer.json"


@lru_cache(maxsize=4)  # a large vocabulary takes a third of a second
def tokenizer_digest(policy: Path) -> str | None:
    """Twelve hexadecimal digits of the vocabulary, merges and added tokens of the tokenizer in the folder ``policy``.

    None where there is no ``tokenizer.json`` that can be read. Chat templates and padding do not count.
    """
    try:
        content = orjson.loads((policy / FILE).read_bytes())
        added = [[token["id"], token["content"]] for token in content.get("added_tokens", [])]
        text = orjson.dumps([content["model"], added], option=orjson.OPT_SORT_KEYS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(text).hexdigest()[:12]
