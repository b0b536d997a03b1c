"""The requests to one engine server when its weights change."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.member import EngineMember


async def update_from(member: EngineMember, files: Iterable[str | Path]) -> None:
    """Load weight files into a server whose weight update has started."""
    for path in files:
        await member.client.control("/update_weights", {"update_info": {"path": str(path)}})


async def load_files(member: EngineMember, version: int, files: Iterable[str | Path]) -> None:
    """Load weight files into a server that runs no requests meanwhile."""
    client = member.client
    await client.control("/start_weight_update")
    await update_from(member, files)
    await client.control("/finish_weight_update", {"weight_version": str(version)})


async def load_adapter(member: EngineMember, version: int, folder: Path) -> None:
    """Load a LoRA adapter in place of the previous one, and send the following requests to it."""
    name, client = f"{member.client.name}-adapter".replace(" ", "-"), member.client
    body = {"lora_name": name, "lora_path": str(folder), "load_inplace": client.adapter == name}
    await client.control("/v1/load_lora_adapter", body)
    await client.control("/update_weight_version", {"new_version": str(version)})
    client.model = client.adapter = name


async def reset_prefix_cache(member: EngineMember) -> None:
    """Drop cached keys and values; running requests recompute theirs. Old ones would give wrong log-probs.

    Raises InfrastructureFault when the engine reports that it could not.
    """
    answer = await member.client.control("/reset_prefix_cache", reset_running_requests="true")
    if not answer.get("success"):
        raise InfrastructureFault("engine", "prefix cache", f"{member.name} could not reset its prefix cache")


async def paused(member: EngineMember, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` while the server does nothing else; its running requests are aborted."""
    try:
        await member.client.control("/pause", mode="abort")
        await work
    finally:
        work.close()
        await member.client.control("/resume")
