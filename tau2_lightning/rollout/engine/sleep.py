"""Engines that share their GPUs with the trainer sleep while it computes (vLLM's sleep mode).

Level 1 moves the weights to the host's memory and drops the cache of keys and values; level 2 drops both, and the next
publication brings the weights. A sleeping engine is woken in two parts: its weights before the publication fills them,
the cache when they are in place, so that both are never there beside what the trainer has not freed yet.
"""

from __future__ import annotations

import asyncio

from .fleet import Fleet
from .member import EngineMember

SLEEP_SECONDS = 120.0


async def put_to_sleep(fleet: Fleet) -> None:
    """Put every server of ``fleet`` that serves to sleep, at the level of its settings. Requests that still run belong
    to no episode that counts, and end. Raises InfrastructureFault when a server refuses, DeadlineExceeded when it does
    not answer.
    """
    if not fleet.settings.sleep_level or fleet.asleep:
        return
    members = [member for member in fleet.members if member.ready or member.stale]
    fleet.asleep = True  # a server that restarts from now on is put to sleep, too
    await asyncio.gather(*(fall_asleep(member, fleet.settings.sleep_level) for member in members))


async def fall_asleep(member: EngineMember, level: int) -> None:
    """Put one server to sleep."""
    async with member.lock:
        work = member.client.control("/sleep", level=str(level), mode="abort")
        await member.within(work, SLEEP_SECONDS, "falling asleep")


async def wake_weights(member: EngineMember) -> None:
    """Give the weights of a sleeping server their memory again; after level 2 they hold nothing yet."""
    await member.client.control("/wake_up", tags="weights")


async def wake_cache(member: EngineMember) -> None:
    """Give a server whose weights are awake its cache again."""
    await member.client.control("/wake_up", tags="kv_cache")
