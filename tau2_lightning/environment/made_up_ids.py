"""The ids that tau2 makes up while an episode is played, from the episode's own seed instead of the machine's."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_source: ContextVar[random.Random | None] = ContextVar("source of ids", default=None)


class SeededUuid:
    """Stands for the ``uuid`` module in a tau2 module: ``uuid4`` draws from the episode that is being played.

    Ids of new bills reach the agent through tool results, so that two runs with one seed would part there. Outside of
    ``made_up_ids`` it is the real module, whose other names it passes on.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(uuid, name)

    def uuid4(self) -> uuid.UUID:
        """A version 4 UUID."""
        source = _source.get()
        return uuid.uuid4() if source is None else uuid.UUID(int=source.getrandbits(128), version=4)


@contextmanager
def made_up_ids(source: random.Random) -> Iterator[None]:
    """Ids that tau2 makes up inside come from ``source``."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
