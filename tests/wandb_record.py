"""Reads the file that an offline W&B run is kept in: blocks of 32 KiB with pieces of protocol-buffer records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32_768, 7
FULL, FIRST, _, LAST = 1, 2, 3, 4


class OfflineRun:
    """What W&B keeps of the only run in ``folder``/wandb."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        self.records = list(_records(self._ended()))

    def _ended(self) -> bytes:
        """The file, once W&B's process has written the end of the run."""
        deadline = time.monotonic() + 60
        while True:
            content = self.path.read_bytes()
            kinds = [one.WhichOneof("record_type") for one in _records(content)]
            if "exit" in kinds or time.monotonic() > deadline:
                return content
            time.sleep(0.1)

    def of(self, kind: str) -> list[Any]:
        """The records of one kind: ``run``, ``history``, ``summary``, ``config``, ``artifact``, ``metric``."""
        return [getattr(one, kind) for one in self.records if one.WhichOneof("record_type") == kind]

    def history(self) -> list[dict[str, Any]]:
        return [_items(one.item) for one in self.of("history")]

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self.of("summary"):
            found |= _items(one.update)
        return found

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in (*(run.config for run in self.of("run")), *self.of("config")):
            found |= _items(one.update)
        return found

    def tables(self) -> dict[str, Any]:
        """The contents of all logged tables by path."""
        folder = self.path.parent / "files" / "media" / "table"
        return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("*.json")}


def _items(items: Any) -> dict[str, Any]:
    """Values by key; those of a mapping, such as a table, come one by one under the names in it."""
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = found
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def _records(content: bytes) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for data in _whole(content):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        yield record


def _whole(content: bytes) -> Iterator[bytes]:
    """The records: each is one piece, or a first, some middle and a last one. A record that is cut off is left out."""
    assert content[:4] == b":W&B"
    at, parts = HEAD, b""
    while at + HEAD <= len(content):
        if BLOCK - at % BLOCK < HEAD:  # the rest of a block that holds no head
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<4xHB", content[at : at + HEAD])
        piece = content[at + HEAD : at + HEAD + length]
        if len(piece) < length:
            return
        at += HEAD + length
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield parts
