"""The route that reports how much processor time the engine core uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import orjson
import pytest

from tau2_lightning.rollout.engine.in_vllm.cpu_seconds import CpuSeconds, seconds_of_children
from tau2_lightning.rollout.engine.in_vllm.names import CPU_SECONDS

BUSY, IDLE = "while True: pass", "import time; time.sleep(60)"


@pytest.mark.parametrize(("program", "computes"), [(BUSY, True), (IDLE, False)])
def test_a_grandchild_that_computes_shows_and_one_that_sleeps_does_not(program: str, computes: bool) -> None:
    """Workers are children of the engine core, which is a child of the API server."""
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    child = subprocess.Popen([sys.executable, "-c", nested], start_new_session=True)
    try:
        time.sleep(1.5)  # imports
        before, ends = seconds_of_children(), time.monotonic() + (20 if computes else 1)
        while seconds_of_children() - before < 0.2 and time.monotonic() < ends:
            time.sleep(0.05)
        assert (seconds_of_children() - before >= 0.2) == computes
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


async def answer(path: str) -> bytes:
    sent: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"body": b"inner"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the route reads no body")

    await CpuSeconds(inner)({"type": "http", "path": path}, receive, send)
    return bytes(sent[-1]["body"])


async def test_the_route_answers_and_others_go_on() -> None:
    assert orjson.loads(await answer(CPU_SECONDS))["cpu_seconds"] >= 0
    assert await answer("/health") == b"inner"
