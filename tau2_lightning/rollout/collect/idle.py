"""The fraction of time in which something is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY_SECONDS = 0.02


class IdleMeter:
    """Samples ``busy()`` every ``every`` seconds; ``take`` returns the idle fraction since its last call."""

    def __init__(self, busy: Callable[[], bool], every: float = EVERY_SECONDS) -> None:
        self._busy, self._every = busy, every
        self._idle = self._total = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(self._every)
            now = clock()
            self._total += now - last
            if not self._busy():
                self._idle += now - last
            last = now

    def take(self) -> float:
        """Idle fraction in [0, 1] since the last call, 0 when nothing was sampled. Call in the loop of ``run``."""
        fraction = self._idle / self._total if self._total else 0.0
        self._idle = self._total = 0.0
        return fraction
