"""The servers of a pool and their shared state. Requests, supervision and weight publications all meet here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from tau2_lightning.errors import DeadlineExceeded

from .member import EngineMember
from .settings import EngineSettings

Replay = Callable[[EngineMember], Coroutine[Any, Any, bool]]


class Fleet:
    """The members of one pool.

    ``faults`` counts failures by ``component:cause``. ``paused`` is true while a publication has stopped scheduling:
    no member is expected to make progress then. ``asleep``: the servers were put to sleep, and wait for weights.
    ``replay`` is set by the WeightPublisher: it loads the current weights
    into a member that has started, and returns False when it has no copy. ``max_model_len`` is the longest prompt plus
    completion, in tokens, that every member takes.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.members: list[EngineMember] = []
        self.faults: Counter[str] = Counter()
        self.paused = False
        self.asleep = False
        self.replay: Replay | None = None
        self.max_model_len = settings.max_model_len
        self._changed = asyncio.Event()

    def waits(self) -> str:
        """What servers are waited for, since when and why, in words; empty while all serve. For any thread."""
        return "; ".join(filter(None, (member.waits.describe(member.name) for member in self.members)))

    def announce(self) -> None:
        """Wake all tasks that wait for a change of a member's state."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Wait for the next ``announce``."""
        await self._changed.wait()

    async def wait_until(self, done: Callable[[], bool], seconds: float | None, doing: str) -> None:
        """Wait until ``done()``. Raises the permanent failure of a member, or DeadlineExceeded after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    if failure := next((member.failure for member in self.members if member.failure), None):
                        raise failure
                    await self.change()
        except TimeoutError as error:
            if seconds is None:
                raise  # a member's own failure
            raise DeadlineExceeded("engine", seconds, doing) from error
