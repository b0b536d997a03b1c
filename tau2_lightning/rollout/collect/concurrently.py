"""Runs many coroutines concurrently; the first failure ends all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

END_SECONDS = 20.0  # time for cancelled coroutines to end


async def within(work: Sequence[Awaitable[T]], seconds: float | None) -> list[T | None]:
    """Run coroutines (or tasks) concurrently for ``seconds`` (None: until all are done); their results in order, None
    for those that are not done by then.

    The first exception cancels the others and is raised. A coroutine that ignores its cancellation is left behind after
    ``END_SECONDS``.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    if not tasks:
        return []
    failed: list[asyncio.Future[T]] = []  # in the order in which they failed, which a set of tasks does not keep
    for task in tasks:
        task.add_done_callback(lambda ended: failed.append(ended) if _fails(ended) else None)
    try:
        _, late = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for first in failed[:1]:
            first.result()
    finally:
        for task in tasks:
            task.cancel()
        if running := [task for task in tasks if not task.done()]:
            await asyncio.wait(running, timeout=END_SECONDS)
    return [None if task in late else task.result() for task in tasks]


def _fails(task: asyncio.Future[Any]) -> bool:
    return not task.cancelled() and task.exception() is not None
