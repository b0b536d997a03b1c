"""The limit on open requests halves once per round of refusals, grows by one per round, and keeps the order."""

from __future__ import annotations

import asyncio

import pytest

from tau2_lightning.environment.adaptive_limit import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, AdaptiveLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_refusals_of_one_round_halve_once_and_close_the_door() -> None:
    clock = Clock()
    limit = AdaptiveLimit(64, clock=clock)
    places = [await limit.enter() for _ in range(64)]
    clock.now += 1.0
    assert [limit.refused(place, 30.0) for place in places] == [30.0] * 64
    assert (limit.limit, limit.closed_for) == (32, 30.0)
    for _ in places:
        limit.leave()
    clock.now += 31.0
    again = await limit.enter()
    assert limit.closed_for == 0.0
    clock.now += 1.0
    limit.refused(again, 5.0)
    assert (limit.limit, limit.closed_for) == (16, 5.0)
    limit.refused(again, 1.0)  # a shorter wait does not end the longer one
    assert limit.closed_for == 5.0


async def test_without_a_time_the_wait_doubles_up_to_a_bound_and_an_answer_resets_it() -> None:
    clock = Clock()
    limit, waits = AdaptiveLimit(4, clock=clock), []
    for _ in range(9):
        place = await limit.enter()
        clock.now += 0.01
        waits.append(limit.refused(place, None))
        limit.leave()
        clock.now += waits[-1] + 1.0
    assert waits[:4] == pytest.approx([FIRST_BACKOFF_S * 2**n for n in range(4)]) and waits[-1] == LONGEST_BACKOFF_S
    assert limit.limit == 1 and limit.refusing
    limit.answered()
    assert not limit.refusing
    place = await limit.enter()
    clock.now += 0.01
    assert limit.refused(place, None) == pytest.approx(FIRST_BACKOFF_S)


def test_answers_raise_the_limit_by_about_one_in_a_round_up_to_the_most() -> None:
    limit = AdaptiveLimit(8)
    limit.refused(float("inf"), 0.0)
    assert limit.limit == 4
    for _ in range(5):
        limit.answered()
    assert limit.limit == 5
    for _ in range(1000):
        limit.answered()
    assert limit.limit == 8


async def test_callers_go_in_their_order_and_a_refused_one_first() -> None:
    limit, order = AdaptiveLimit(1), []

    async def caller(name: str, *, again: bool = False) -> None:
        await limit.enter(again=again)
        order.append(name)
        await asyncio.sleep(0)
        limit.leave()

    await limit.enter()
    tasks = [asyncio.create_task(caller(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(caller("refused", again=True)))
    await asyncio.sleep(0)
    assert limit.waiting == 4
    limit.leave()
    await asyncio.gather(*tasks)
    assert order == ["refused", "a", "b", "c"] and limit.open == limit.waiting == 0


async def test_the_door_opens_by_itself_and_a_cancelled_caller_leaves_nothing() -> None:
    limit = AdaptiveLimit(2)
    place = await limit.enter()
    limit.refused(place, 0.1)
    limit.leave()
    waits, gives_up = (asyncio.create_task(limit.enter()) for _ in range(2))
    await asyncio.sleep(0.02)
    gives_up.cancel()
    await asyncio.wait([gives_up])
    assert limit.waiting == 1 and not waits.done()
    await asyncio.wait_for(waits, 2.0)
    assert limit.open == 1
    limit.leave()
    assert limit.open == 0


async def test_no_endpoint_closes_the_door_for_a_day() -> None:
    now = [0.0]
    limit = AdaptiveLimit(4, longest_wait_s=300.0, clock=lambda: now[0])
    assert limit.refused(await limit.enter(), 86_400.0) == 300.0
    patient = AdaptiveLimit(4, clock=lambda: now[0])
    assert patient.refused(await patient.enter(), 86_400.0) == 86_400.0, "the control: without a bound it is closed"
