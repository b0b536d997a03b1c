"""Whether a folder's safetensors files are complete, by their headers. No weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

_INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # as the format's own readers allow


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
        expected, size = _bytes_of(file), file.stat().st_size
        if expected is None:
            yield f"{file.name} is no safetensors file"
        elif size < expected:
            yield f"{file.name} is cut off: {size} of {expected} bytes"


def _bytes_of(file: Path) -> int | None:
    """The size of the file by its header; None without a readable header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            return None
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)
