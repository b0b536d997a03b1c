"""What a folder's safetensors files hold, by their headers: whether they are complete, and each tensor's shape.

No weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LENGTH = 8  # bytes at the start of a file, which hold the length of its header


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file called ``file``; ``dtype`` as safetensors names it (``BF16``)."""

    file: str
    shape: tuple[int, ...]
    dtype: str = "BF16"


def incomplete_files(folder: Path) -> Iterator[str]:
    """One line for each thing that is wrong with the files themselves: files that the index names and the folder lacks,
    files that are cut off or no safetensors, tensors that the index names and their file lacks, shards without index,
    and files beside `SINGLE` that an engine would read too.
    """
    index = folder / INDEX
    named: dict[str, str] = {}
    if index.is_file():
        try:
            named = dict(json.loads(index.read_text())["weight_map"])
            missing = sorted(name for name in set(named.values()) if not (folder / name).is_file())
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"{INDEX} cannot be read"
            return
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            yield f"{missing[0]}{more} of {INDEX} is missing"
    files = sorted(folder.glob("*.safetensors"))
    cut = {file.name: problem for file in files if (problem := _unreadable(file)) is not None}
    yield from (f"{name} {problem}" for name, problem in cut.items())
    if files and not index.is_file():
        others = [file.name for file in files if file.name != SINGLE]
        if len(others) == len(files):
            yield f"there is neither {SINGLE} nor {INDEX}, only {others[0]}" + (" and others" if others[1:] else "")
        elif others:
            yield f"{others[0]} lies beside {SINGLE}, and an engine reads every such file of a folder without {INDEX}"
    whole = {file.name for file in files} - set(cut)
    held = {file: set(_header(folder / file)) for file in set(named.values()) & whole}
    lost = [name for name, file in named.items() if file in held and name not in held[file]]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        yield f"{INDEX} says that {lost[0]}{more} is in {named[lost[0]]}, which does not hold it"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model in ``folder`` by its name, from the headers of `SINGLE` or of the files of `INDEX`.

    Empty for a folder without either. The files must be complete (`incomplete_files`).
    """
    index = folder / INDEX
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = [SINGLE] if (folder / SINGLE).is_file() else []
    return {
        name: StoredTensor(file, tuple(entry["shape"]), entry["dtype"])
        for file in files
        for name, entry in _header(folder / file).items()
    }


def _unreadable(file: Path) -> str | None:
    try:
        with safe_open(file, framework="numpy"):
            return None
    except SafetensorError as error:
        return f"is cut off, or no safetensors file ({error})"
    except OSError as error:  # no permission, a folder of this name, ...
        return f"cannot be read ({error})"


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape and place of each tensor of a complete file. Parsed here: asking safetensors for each of the
    19,000 tensors of a mixture of experts takes seconds."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH), "little")
        header: dict[str, dict[str, Any]] = orjson.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header
