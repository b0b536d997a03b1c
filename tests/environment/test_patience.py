"""The time that an episode waits for a rate-limited model does not count towards its timeout."""

from __future__ import annotations

import asyncio

import pytest

from tau2_lightning.environment.patience import charged_to, uncharged


async def test_a_wait_at_the_door_costs_no_time() -> None:
    async with asyncio.timeout(0.3) as limit:
        with charged_to(limit):
            for _ in range(3):
                with uncharged():
                    await asyncio.sleep(0.2)
    assert not limit.expired()


async def test_other_waits_do_and_time_that_was_used_stays_used() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3) as limit:
            with charged_to(limit):
                await asyncio.sleep(0.2)
                with uncharged():
                    await asyncio.sleep(0.2)
                await asyncio.sleep(0.25)


async def test_two_waits_at_once_and_no_limit_at_all() -> None:
    async def waits(seconds: float) -> None:
        with uncharged():
            await asyncio.sleep(seconds)

    await waits(0.01)
    async with asyncio.timeout(5.0) as limit:
        with charged_to(limit):
            await asyncio.gather(waits(0.05), waits(0.1))
            assert limit.when() is not None
    async with asyncio.timeout(None) as limit:
        with charged_to(limit):
            await waits(0.01)
            assert limit.when() is None
