"""Agents of runs with a real engine, in whose third batch something happens to an episode, a tool or the user."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

from tau2_lightning.environment import EnvironmentSettings, UserSettings
from tests.environment.broken_server import BrokenServer, broken

from .soak import SoakAgent

# A batch of `real.with_engine` has four episodes; the ninth begins the third batch.
NINTH = 9
BLOCKED_SECONDS = 8.0


class Afflicted(SoakAgent):
    """The ninth episode does what ``how`` says: ``hang`` awaits for ever, ``block`` is a tool that waits without
    ``await``, so that the loop of all episodes stands still."""

    how: str
    begun: list[str]

    def __init__(self, how: str) -> None:
        super().__init__()
        object.__setattr__(self, "how", how)
        object.__setattr__(self, "begun", [])

    async def run(self, data: Mapping[str, Any], **connection: Any) -> dict[str, Any]:
        self.begun.append(data["task_id"])
        if len(self.begun) == NINTH and self.how == "hang":
            await asyncio.sleep(3600)
        if len(self.begun) == NINTH and self.how == "block":
            time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251
        return await super().run(data, **connection)


class WithUser(Afflicted):
    """Its user is a model behind an endpoint. What the first episodes of the third batch ask is answered as ``how``
    says (`broken_server.KINDS`), all else as it should be."""

    user: BrokenServer
    answers: str

    def __init__(self, how: str) -> None:
        super().__init__("go on")
        object.__setattr__(self, "answers", how)
        server, url = _served()
        user = UserSettings("llm", llm="user-7b", base_url=url, timeout_s=1.0, deadline_s=4.0)
        object.__setattr__(self, "user", server)
        object.__setattr__(self, "settings", EnvironmentSettings("mock", max_steps=6, policy="none", user=user))

    async def run(self, data: Mapping[str, Any], **connection: Any) -> dict[str, Any]:
        self.user.kind = self.answers if NINTH - 1 <= len(self.begun) < NINTH + 3 else "fine"
        return await super().run(data, **connection)


def _served() -> tuple[BrokenServer, str]:
    """A server in a thread of its own, until this process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="user", daemon=True).start()
    return asyncio.run_coroutine_threadsafe(_server("fine"), loop).result(30)


async def _server(kind: str) -> tuple[BrokenServer, str]:
    _OPEN.append(broken(kind))
    return await _OPEN[-1].__aenter__()


_OPEN: list[Any] = []
