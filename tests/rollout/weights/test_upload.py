"""The upload of weight files through a real HTTP server: keys, large bodies, connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
import uvicorn
from safetensors.torch import load_file, save_file
from starlette.applications import Starlette
from starlette.middleware import Middleware

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import EngineRejected
from tau2_lightning.rollout.engine.in_vllm.auth import RequireKey
from tau2_lightning.rollout.engine.in_vllm.dense_files import DenseFiles
from tau2_lightning.rollout.engine.in_vllm.names import WEIGHTS
from tau2_lightning.rollout.engine.in_vllm.weight_routes import TakeWeights
from tau2_lightning.rollout.engine.member import EngineMember
from tau2_lightning.rollout.engine.vllm_client import VLLMClient
from tau2_lightning.rollout.weights import upload as module
from tau2_lightning.rollout.weights.upload import drop, held_by, upload

KEY = "the engine's key"


@pytest_asyncio.fixture
async def url(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A server with our middleware in the order of an engine's, the store in this machine's memory."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    app = Starlette(middleware=[Middleware(RequireKey), Middleware(TakeWeights)])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest_asyncio.fixture
async def member(url: str) -> AsyncIterator[EngineMember]:
    client = VLLMClient(url, api_key=KEY, name="engine 0")
    yield EngineMember(client, None)
    await client.close()


@pytest.fixture
def weights(tmp_path: Path) -> tuple[list[Path], DenseFiles]:
    """Two files, the first of several pieces."""
    dense = DenseFiles()
    for number, rows in enumerate((9000, 3)):
        path = tmp_path / f"{number}.safetensors"
        save_file({f"w{number}": torch.randn(rows, 1000).to(torch.bfloat16)}, path)
        dense.add(path)
    assert dense.paths[0].stat().st_size > module.PIECE_BYTES
    return dense.paths, dense


def present(paths: list[str]) -> list[str]:
    return [path for path in paths if Path(path).exists()]


async def test_files_of_several_pieces_arrive(member: EngineMember, weights: tuple[list[Path], DenseFiles]) -> None:
    files, dense = weights
    before = await held_by(member)
    assert before.version is None
    paths = await upload(member, files, "1", dense.digests())
    for path, file in zip(paths, files, strict=True):
        assert all(torch.equal(tensor, load_file(file)[name]) for name, tensor in load_file(path).items())
    held = await held_by(member)
    assert held.store == before.store and held.version == "1"
    await drop(member)
    assert not present(paths)


async def test_the_wrong_key_opens_nothing(url: str, weights: tuple[list[Path], DenseFiles]) -> None:
    stranger = EngineMember(VLLMClient(url, api_key="guessed", name="engine 0"), None)
    files, dense = weights
    with pytest.raises(InfrastructureFault, match="unauthorized"):
        await upload(stranger, files, "1", dense.digests())
    with pytest.raises(InfrastructureFault, match="unauthorized"):
        await held_by(stranger)
    await stranger.client.close()


async def test_a_base_that_the_engine_does_not_hold_is_refused(
    member: EngineMember, weights: tuple[list[Path], DenseFiles]
) -> None:
    files, dense = weights
    with pytest.raises(EngineRejected, match="not 7"):
        await upload(member, files, "8", dense.digests(), base="7")


async def test_a_connection_that_breaks_in_a_body_leaves_nothing_behind(
    url: str, member: EngineMember, weights: tuple[list[Path], DenseFiles]
) -> None:
    files, dense = weights
    begun = await member.client.control(f"{WEIGHTS}/begin", {"sizes": [1000], "base": None})
    host, port = url.removeprefix("http://").split(":")
    for length in (1000, module.PIECE_BYTES):
        _, writer = await asyncio.open_connection(host, int(port))
        query = f"upload={begun['upload']}&part=0&offset=0&checksum=0"
        head = f"POST {WEIGHTS}/chunk?{query} HTTP/1.1\r\nHost: engine\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode() + b"x" * 500)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    with pytest.raises(EngineRejected, match="0 of 1000 bytes"):
        await member.client.control(f"{WEIGHTS}/commit", {"upload": begun["upload"], "version": "1", "digests": {}})
    await upload(member, files, "2", dense.digests())
    assert (await held_by(member)).version == "2"


async def test_a_body_without_end_is_cut_off(url: str, member: EngineMember) -> None:
    """More than the limit is refused while it arrives, whatever length was announced."""
    with pytest.raises((EngineRejected, InfrastructureFault)):
        await member.client.post(f"{WEIGHTS}/chunk", b"0" * (33 << 20), {"upload": "x"}, {"Content-Type": "a/b"})
    assert (await held_by(member)).version is None
