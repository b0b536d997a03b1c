"""`blocking` waits for a coroutine with and without a running event loop, and passes its error on."""

from __future__ import annotations

import asyncio

import pytest

from tau2_lightning.blocking import blocking


async def work(fails: bool = False) -> str:
    await asyncio.sleep(0)
    if fails:
        raise KeyError("mine")
    return "done"


def test_in_a_script() -> None:
    assert blocking(work()) == "done"
    with pytest.raises(KeyError, match="mine"):
        blocking(work(fails=True))


async def test_inside_an_event_loop_as_in_a_notebook() -> None:
    assert blocking(work()) == "done"
    with pytest.raises(KeyError, match="mine"):
        blocking(work(fails=True))
