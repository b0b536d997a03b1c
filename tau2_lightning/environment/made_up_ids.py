"""Ids and durations that tau2 makes while an episode is played: by the episode's seed instead of chance."""

from __future__ import annotations

import random
import time
import uuid
from contextvars import ContextVar, Token
from typing import Any


class SeededUuid:
    """Replaces the ``uuid`` module in a tau2 module: ``uuid4`` draws from the episode that is being played.

    Ids of new bills reach the agent through tool results, so two runs with one seed would differ from there on. Outside
    of ``MadeUpIds``, and for all other names, it is the real module.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(uuid, name)

    def uuid4(self) -> uuid.UUID:
        """A version 4 UUID."""
        source = _source.get()
        return uuid.uuid4() if source is None else uuid.UUID(int=source.getrandbits(128), version=4)


class SteadyTime:
    """Replaces the ``time`` module in a tau2 module: no time passes while an episode with a seed is played.

    A search of upstream's knowledge base tells the agent how many milliseconds it took. Outside of ``MadeUpIds``, and
    for all other names, it is the real module.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def perf_counter(self) -> float:
        """Seconds: 0 while an episode is played."""
        return time.perf_counter() if _source.get() is None else 0.0


class MadeUpIds:
    """A context in which tau2's ids come from ``seed``; entered again, it continues the sequence. Do not nest one in
    itself.

    The generator is made with the first id, which few episodes need: it is large compared to an episode.
    """

    __slots__ = ("_random", "_seed", "_token")

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._random: random.Random | None = None
        self._token: Token[MadeUpIds | None] | None = None

    def __enter__(self) -> None:
        self._token = _source.set(self)

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _source.reset(self._token)

    def getrandbits(self, bits: int) -> int:
        """As ``random.Random.getrandbits``."""
        if self._random is None:
            self._random = random.Random(self._seed)
        return self._random.getrandbits(bits)


_source: ContextVar[MadeUpIds | None] = ContextVar("source of ids", default=None)
