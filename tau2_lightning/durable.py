"""Files and folders that are on the disk, whole, once they have their name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, bring it to the disk, then give it its name."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    bring_to_disk(path.parent)


def take_name(partial: Path, folder: Path) -> None:
    """Give the complete folder ``partial`` the name ``folder``. An older folder of that name stays in place until then,
    and is removed."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    bring_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def bring_to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: without it a rename may be lost with the machine's power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
