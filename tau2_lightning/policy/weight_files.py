"""Whether a folder's safetensors files are complete, by their headers. No weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

_INDEX = "model.safetensors.index.json"


def incomplete_files(folder: Path) -> Iterator[str]:
    """One line for each file that an index names and the folder lacks, and for each that is cut off or no safetensors
    file."""
    index = folder / _INDEX
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"{_INDEX} cannot be read"
            return
        missing = [name for name in named if not (folder / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"{missing[0]}{more} of {_INDEX} is missing"
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except SafetensorError as error:
            yield f"{file.name} is cut off, or no safetensors file ({error})"
