"""Paths as the configuration takes them: such as the operating system can look up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator

# What Linux takes, in bytes: of a name between two slashes, and of a whole path.
LONGEST_NAME, LONGEST_PATH = 255, 4095
# Names of files that a run makes are longer than the folder they are named after.
ROOM = 32

P = TypeVar("P", str, Path)


def _usable(path: P) -> P:
    """``path``, if a file can have this name. Raises ValueError."""
    text = str(path)
    if "\0" in text:
        raise ValueError("a path cannot hold the character NUL")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise ValueError("a path must be Unicode text") from None
    longest = max(map(len, encoded.split(b"/")))
    if longest > LONGEST_NAME - ROOM:
        raise ValueError(f"has a name of {longest} bytes in it; at most {LONGEST_NAME - ROOM} are allowed")
    if len(encoded) > LONGEST_PATH // 2:
        raise ValueError(f"has {len(encoded)} bytes; at most {LONGEST_PATH // 2} are allowed")
    return path


PathText = Annotated[str, AfterValidator(_usable)]
FolderPath = Annotated[Path, AfterValidator(_usable)]
