"""The manifest of a checkpoint: size and digest of every file in it, so that damage is found before anything starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson

from tau2_lightning.durable import write_durably

MANIFEST = "manifest.json"
# Hashing releases the interpreter's lock; a checkpoint has one large file per rank.
THREADS = 8


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json`` with the size (bytes) and the SHA-256 of every other file of ``folder``."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    digests = _digests(files)
    content = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(files, digests, strict=True)
    }
    write_durably(folder / MANIFEST, orjson.dumps({"files": content}, option=orjson.OPT_INDENT_2))


def damage(folder: Path, *, digests: bool = True) -> str | None:
    """What is wrong with the files of a checkpoint, in words; None when all are as they were written.

    With ``digests=False`` only names and sizes are compared, which takes no time. A checkpoint without a manifest is
    one of an earlier version: nothing is known to be wrong with it.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return None
    try:
        stored: dict[str, dict[str, Any]] = orjson.loads(manifest.read_bytes())["files"]
        sizes = {name: int(entry["bytes"]) for name, entry in stored.items()}
        expected = [str(entry["sha256"]) for entry in stored.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    if digests:
        try:
            found = _digests([folder / name for name in sizes])
        except OSError as error:
            return f"it cannot be read: {error}"
        for name, there, here in zip(sizes, expected, found, strict=True):
            if there != here:
                return f"the bytes of {name} are not those that were written"
    return None


def total_bytes(folder: Path) -> int:
    """The size of all files of ``folder``, in bytes."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _digests(files: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="checksum") as pool:
        return list(pool.map(_digest, files))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
