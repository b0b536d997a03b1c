"""The share of time in which no episode runs."""

from __future__ import annotations

import asyncio

import pytest

from tau2_lightning.rollout.collect.idle import IdleMeter
from tests.rollout.collect.virtual_time import VirtualTimePolicy


@pytest.fixture(scope="module")
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


async def test_the_idle_meter_measures_the_share_of_time():
    busy = False
    meter = IdleMeter(lambda: busy, every=0.002)
    measuring = asyncio.create_task(meter.run())
    await asyncio.sleep(0.041)
    busy = True
    await asyncio.sleep(0.06)
    assert meter.take() == pytest.approx(0.4)
    await asyncio.sleep(0.02)
    assert meter.take() == 0.0
    measuring.cancel()
