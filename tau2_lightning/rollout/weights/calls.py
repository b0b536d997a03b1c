"""The requests to one engine server that gets weights outside a publication."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

from tau2_lightning.rollout.engine.member import EngineMember


async def load_files(member: EngineMember, version: int, files: Iterable[str | Path]) -> None:
    """Load weight files into a server that runs no requests meanwhile."""
    await member.client.begin_update()
    await member.client.load_files(files)
    await member.client.finish_update(version)


async def paused(member: EngineMember, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` while the server does nothing else; its running requests are aborted."""
    try:
        await member.client.pause("abort")
        await work
    finally:
        work.close()
        await member.client.resume()
