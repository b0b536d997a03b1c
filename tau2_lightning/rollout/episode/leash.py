"""Runs an episode's workflow within its time. A workflow that ignores its cancellation is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from tau2_lightning.environment.patience import charged_to
from tau2_lightning.rollout.deadlines import UNWIND_SECONDS

log = structlog.get_logger(__name__)


async def played_within(playing: Coroutine[Any, Any, Any], seconds: float) -> tuple[bool, Any, BaseException | None]:
    """(whether the time was over, what ``playing`` returned, what it raised), after at most ``seconds`` and
    ``UNWIND_SECONDS`` more.

    It runs in a task of its own: code of a user's may swallow its cancellation and go on for ever, and the episode must
    end all the same. Such a task is left behind with a line in the log. Waits that are not charged stop the clock
    (`environment.patience`).
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            with charged_to(limit):
                task = asyncio.create_task(_outcome(playing))
            await asyncio.wait([task])
    except TimeoutError:  # of the limit: waiting for the task raises nothing of its own
        pass
    finally:
        await _end(task)
    given, error = task.result() if task.done() and not task.cancelled() else (None, None)
    return limit.expired(), given, error


async def _outcome(playing: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """What ``playing`` returned or raised. SystemExit would end the event loop if it left a task."""
    try:
        return await playing, None
    except (Exception, BaseExceptionGroup, asyncio.CancelledError, SystemExit) as error:  # noqa: BLE001
        return None, error


async def _end(task: asyncio.Task[Any]) -> None:
    if task.done():
        return
    task.cancel()
    await asyncio.wait([task], timeout=UNWIND_SECONDS)
    if not task.done():
        log.warning("a workflow does not end when it is cancelled: left behind", task=str(task.get_coro())[:200])
