"""Waits that an episode is not charged for: time at the door of a model that limits its rate."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_limit: ContextVar[asyncio.Timeout | None] = ContextVar("time limit of the episode", default=None)


@contextmanager
def charged_to(limit: asyncio.Timeout) -> Iterator[None]:
    """Inside, `uncharged` stops the clock of ``limit``."""
    token = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def uncharged() -> Iterator[None]:
    """Stop the clock of the episode's time limit, where there is one and it is running.

    The wait inside must have a deadline of its own.
    """
    limit = _limit.get()
    until = None if limit is None or limit.expired() else limit.when()
    if limit is None or until is None:  # no limit, or another wait of the episode has stopped it
        yield
        return
    clock = asyncio.get_running_loop().time
    left = until - clock()
    limit.reschedule(None)
    try:
        yield
    finally:
        if not limit.expired():
            limit.reschedule(clock() + left)
