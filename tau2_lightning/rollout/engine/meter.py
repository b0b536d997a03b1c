"""Reads the load of a pool's servers from time to time, while they work."""

from __future__ import annotations

import asyncio

import structlog

from tau2_lightning.errors import InfrastructureFault

from .generation import EngineRejected
from .pool import EnginePool
from .statistics import EngineLoad, over_engines, read_metrics

log = structlog.get_logger(__name__)

EVERY_SECONDS = 5.0
ANSWER_SECONDS = 2.0


class EngineMeter:
    """``run`` reads the servers until it is cancelled; ``take`` returns the numbers since its last call.

    A server that does not answer in time is left out of one reading. A server without such numbers is not asked again.
    """

    def __init__(self, pool: EnginePool, every: float = EVERY_SECONDS) -> None:
        self._pool, self._every = pool, every
        self._loads: dict[int, EngineLoad] = {}
        self._silent: set[int] = set()
        self._cut_off = 0

    async def run(self) -> None:
        """Read every ``every`` seconds."""
        while True:
            await asyncio.sleep(self._every)
            await asyncio.gather(*(self._read(number) for number in range(len(self._pool.members))))

    async def _read(self, number: int) -> None:
        member = self._pool.members[number]
        if number in self._silent or not member.ready or not member.inflight:
            return
        try:
            reading = read_metrics(await member.client.metrics(ANSWER_SECONDS))
        except (InfrastructureFault, TimeoutError):
            return
        except EngineRejected:
            reading = None
        if reading is None:
            self._silent.add(number)
            log.warning("an engine gives no metrics", engine=member.name)
            return
        self._loads.setdefault(number, EngineLoad()).add(reading)

    def take(self) -> dict[str, float]:
        """The numbers since the last call, and ``engine/cut_off``, the completions that their deadline ended."""
        loads = {str(number): load.take() for number, load in sorted(self._loads.items())}
        before, self._cut_off = self._cut_off, self._pool.cut_off
        return {
            **over_engines({name: load for name, load in loads.items() if load}),
            "engine/cut_off": float(self._cut_off - before),
        }
