"""Exchange of addresses between the nodes of one launch, by files in the run's folder, which every node sees."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tau2_lightning.errors import DeadlineExceeded

POLL_SECONDS = 0.2


class Rendezvous:
    """Entries (JSON objects) by name in ``folder``, one folder per launch. Each is written once and read by all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, entry: dict[str, Any]) -> None:
        """Write an entry; readers see it complete or not at all."""
        draft = self.folder / f".{name}-{os.getpid()}"
        draft.write_text(json.dumps(entry))
        draft.replace(self.folder / name)

    def look(self, name: str) -> dict[str, Any] | None:
        """The entry, or None before it is written."""
        try:
            entry: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None
        return entry

    def wait(self, name: str, seconds: float) -> dict[str, Any]:
        """Wait for the entry and return it. Raises DeadlineExceeded naming it."""
        ends = time.monotonic() + seconds
        while (entry := self.look(name)) is None:
            if time.monotonic() > ends:
                raise DeadlineExceeded(name, seconds, f"waiting for its entry in {self.folder}")
            time.sleep(POLL_SECONDS)
        return entry
