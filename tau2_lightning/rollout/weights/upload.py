"""Sends weight files to one engine server over HTTP, in checked pieces; `in_vllm.weight_routes` has the routes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog
import xxhash

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.engine.in_vllm.names import WEIGHTS
from tau2_lightning.rollout.engine.member import EngineMember

log = structlog.get_logger(__name__)

PIECE_BYTES = 16 << 20
PIECES_IN_FLIGHT = 4
ATTEMPTS = 3  # per piece
BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Held:
    """What a server's store holds: the id of the store, which a restart changes, and the version of its weights."""

    store: str
    version: str | None


async def held_by(member: EngineMember) -> Held:
    """The weights that a server's store holds. Raises InfrastructureFault when it has no store."""
    try:
        answer = await member.client.get(WEIGHTS)
    except EngineRejected as error:
        raise InfrastructureFault(
            "engine",
            "weight sync",
            f"{member.name} at {member.client.url} does not take weights over HTTP. Start vLLM there with the flags of "
            f"docs/weight_sync.md, or use another rollout.weight_sync.backend ({error})",
        ) from error
    return Held(str(answer["store"]), answer["version"])


async def upload(
    member: EngineMember, files: Sequence[Path], version: str, digests: Mapping[str, str], *, base: str | None = None
) -> list[str]:
    """Send ``files`` and make them ``version``; returns the paths of the files that the server's workers load.

    For files of changes, ``base`` is the version that they start from; None for complete weights. Raises EngineRejected
    when the server's weights are not ``base``, or do not have ``digests`` afterwards.
    """
    client = member.client
    sizes = [file.stat().st_size for file in files]
    begun = await client.control(f"{WEIGHTS}/begin", {"sizes": sizes, "base": base})
    gate = asyncio.Semaphore(PIECES_IN_FLIGHT)

    async def send(part: int, file: Path, offset: int, size: int) -> None:
        async with gate:
            data = await asyncio.to_thread(_read, file, offset, size)
            where = {"upload": str(begun["upload"]), "part": str(part), "offset": str(offset)}
            await _send_piece(member, data, where)

    try:
        async with asyncio.TaskGroup() as group:
            for part, (file, size) in enumerate(zip(files, sizes, strict=True)):
                for offset in range(0, size, PIECE_BYTES):
                    group.create_task(send(part, file, offset, min(PIECE_BYTES, size - offset)))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    body = orjson.dumps({"upload": begun["upload"], "version": version, "digests": dict(digests)})
    return list((await client.post(f"{WEIGHTS}/commit", body))["paths"])


async def drop(member: EngineMember) -> None:
    """Make the server free the memory of its store."""
    await member.client.control(f"{WEIGHTS}/drop")


async def _send_piece(member: EngineMember, data: bytes, where: Mapping[str, str]) -> None:
    """Send one piece, and again when the server refuses it (incomplete, altered) or the connection breaks."""
    query = {**where, "checksum": await asyncio.to_thread(xxhash.xxh3_128_hexdigest, data)}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await member.client.post(f"{WEIGHTS}/chunk", data, query, {"Content-Type": BINARY})
        except (InfrastructureFault, EngineRejected) as error:
            if attempt == ATTEMPTS:
                raise
            log.warning("a piece of the weights is sent again", engine=member.name, error=str(error)[:300])
            await asyncio.sleep(0.1 * 2**attempt)
        else:
            return


def _read(file: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        data = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(data) != size:
        raise InfrastructureFault("engine", "weight sync", f"{file} has changed while it was sent")
    return data
