"""How the nodes of one launch find each other: cards in the run's folder, which every node must see anyway."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tau2_lightning.errors import DeadlineExceeded

POLL_SECONDS = 0.2


class Meeting:
    """Cards by name in ``folder``, one folder a launch. A card is written once, whole, and read by anyone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, card: dict[str, Any]) -> None:
        """Write a card; readers see all of it or nothing."""
        draft = self.folder / f".{name}-{os.getpid()}"
        draft.write_text(json.dumps(card))
        draft.replace(self.folder / name)

    def look(self, name: str) -> dict[str, Any] | None:
        """The card, or None when it is not there yet."""
        try:
            card: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None
        return card

    def wait(self, name: str, seconds: float) -> dict[str, Any]:
        """The card once it is there. Raises DeadlineExceeded naming it."""
        ends = time.monotonic() + seconds
        while (card := self.look(name)) is None:
            if time.monotonic() > ends:
                raise DeadlineExceeded(name, seconds, f"waiting for its card in {self.folder}")
            time.sleep(POLL_SECONDS)
        return card
