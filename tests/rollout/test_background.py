"""Coroutines run in another thread; a wait ends at its deadline with an error that names the component."""

import asyncio
import threading

import pytest

from tau2_lightning.errors import DeadlineExceeded
from tau2_lightning.rollout.background import BackgroundLoop


@pytest.fixture
def background():
    loop = BackgroundLoop()
    yield loop
    loop.close()


async def name() -> str:
    return threading.current_thread().name


def test_runs_elsewhere_and_returns(background):
    assert background.call(name(), component="x", doing="y", timeout=5) == "rollouts"


def test_exceptions_come_back(background):
    async def fail():
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        background.call(fail(), component="x", doing="y", timeout=5)


def test_deadline_names_the_component_and_cancels(background):
    cancelled = threading.Event()

    async def hang():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(DeadlineExceeded, match=r"engine: timeout: no answer within 0.1 s while starting"):
        background.call(hang(), component="engine", doing="starting", timeout=0.1)
    assert cancelled.wait(5)


def test_a_timeout_inside_is_not_mistaken_for_the_deadline(background):
    async def inner():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        background.call(inner(), component="x", doing="y", timeout=5)


def test_close_twice_and_cancels_the_rest():
    loop = BackgroundLoop()
    ended = threading.Event()
    running: list[asyncio.Task[None]] = []  # the loop has only weak references to tasks

    async def forever():
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()

    async def launch():
        running.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    loop.call(launch(), component="x", doing="y", timeout=5)
    loop.close()
    loop.close()
    assert ended.is_set()
