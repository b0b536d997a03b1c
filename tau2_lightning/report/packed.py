"""Data inside the page: JSON, deflated, in base64. Nothing in it can end a script element or be taken for markup."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

_LEVEL = 6


def packed(value: Any) -> str:
    """``value`` as the page unpacks it (``unpack`` in ``core.js``). Lone surrogates survive as JSON escapes."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(deflate.compress(text.encode("ascii")) + deflate.flush()).decode("ascii")
