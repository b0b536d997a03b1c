"""Writes docs/models.md: what can be done with each family of models. `--sync` measures engines first.

    python -m tools.models_table [--sync [FAMILY ...]]

Letters, packing and adapters are read from the code, and tests/strategy/families tests each of them. The column of the
engine is measured (tests/e2e/test_families.py) and kept in docs/models.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

PAGE, RESULTS = Path("docs/models.md"), Path("docs/models.json")
# Families that vLLM's CPU engine does not load.
NOT_SYNCED: dict[str, str] = {}
