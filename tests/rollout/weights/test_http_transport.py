"""Weights over HTTP, in full and as changes: what engines hold in the end, what is sent, and what can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from aiohttp import web

from tau2_lightning.errors import ConfigError, InfrastructureFault
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights import upload
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.rollout.weights.storing_vllm import StoringVLLM

Weights = dict[str, torch.Tensor]


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[list[StoringVLLM]]:
    folders = [tmp_path / f"engine{number}" for number in (1, 2)]
    for folder in folders:
        folder.mkdir()
    made = [StoringVLLM(folder, number) for number, folder in enumerate(folders, start=1)]
    for server in made:
        await server.start()
    yield made
    for server in made:
        await server.stop()


@pytest_asyncio.fixture
async def pool(servers: list[StoringVLLM]) -> AsyncIterator[EnginePool]:
    settings = EngineSettings(urls=tuple(server.url for server in servers), dtype="bfloat16")
    async with EnginePool(settings) as made:
        yield made


def publisher_of(pool: EnginePool, folder: Path, mode: str) -> WeightPublisher:
    return WeightPublisher(pool, backend="http", sync_mode=mode, files=WeightFiles(folder, folder))


class Policy:
    """Float32 masters, as a trainer holds them, and what a bfloat16 engine must have of them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.masters = {"q.weight": torch.randn(300, 200), "k.weight": torch.randn(100, 200), "norm": torch.randn(200)}

    def step(self, fraction: float = 0.01) -> None:
        for tensor in self.masters.values():
            tensor += 0.02 * torch.randn_like(tensor) * (torch.rand_like(tensor) < fraction)

    def buckets(self) -> list[list[tuple[str, torch.Tensor]]]:
        q, k, norm = self.masters.items()
        return [[q], [], [k, norm]]

    @property
    def wire(self) -> Weights:
        return {name: t.to(torch.bfloat16) if t.ndim > 1 else t for name, t in self.masters.items()}


def holds(server: StoringVLLM, expected: Weights) -> bool:
    """Whether the engine's model is ``expected``, bit for bit."""
    return server.model.keys() == expected.keys() and all(
        server.model[name].dtype == tensor.dtype and torch.equal(server.model[name], tensor)
        for name, tensor in expected.items()
    )


async def test_full_weights_reach_every_engine_and_leave_no_copy_there(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "full"), Policy()
    for version in (1, 2):
        policy.step()
        report = await publisher.publish(version, policy.buckets())
        assert all(holds(server, policy.wire) and server.version == str(version) for server in servers)
        assert report.bytes >= report.whole_bytes == 2 * (300 * 200 + 100 * 200) + 4 * 200
        assert report.seconds["send"] > 0
    assert not list((tmp_path / "engine1").rglob("tau2-lightning-*/[0-9a-f]*"))


async def test_engines_generate_while_weights_are_sent(pool, servers, tmp_path):
    await publisher_of(pool, tmp_path, "full").publish(1, Policy().buckets())
    for server in servers:
        server.calls.clear()
    seen: list[list[str]] = []
    servers[0].behave["/commit"] = lambda request, body: seen.append(list(servers[0].calls))
    await publisher_of(pool, tmp_path, "full").publish(2, Policy().buckets())
    assert seen == [[]], "the engine was paused before everything had arrived"
    assert servers[0].calls[0] == "/pause"


async def test_the_second_version_travels_as_changes(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    first = await publisher.publish(1, policy.buckets())
    assert first.bytes >= first.whole_bytes
    for version in (2, 3, 4):
        policy.step()
        report = await publisher.publish(version, policy.buckets())
        assert all(holds(server, policy.wire) for server in servers), version
        assert report.bytes < 0.1 * report.whole_bytes and report.fallbacks == 0
        assert [member.version for member in pool.members] == [version, version]
    policy.masters["k.weight"][0, 0] = float("nan")
    await publisher.publish(5, policy.buckets())
    assert servers[0].model["k.weight"].isnan().sum() == 1
    kept = list(tmp_path.glob("tau2-lightning-*/*"))
    assert not [path for path in kept if path.suffix == ".changes"]


async def test_tensors_are_gathered_once_however_many_engines_take_them(pool, servers, tmp_path):
    publisher, policy, taken = publisher_of(pool, tmp_path, "delta"), Policy(), []

    def once():
        for number, bucket in enumerate(policy.buckets()):
            taken.append(number)
            yield bucket

    for version in (1, 2):
        await publisher.publish(version, once())
    servers[0].restart()
    await publisher.publish(3, once())  # changes to one engine, all weights to the other
    assert taken == [0, 1, 2] * 3 and all(holds(server, policy.wire) for server in servers)


async def test_nothing_changed_sends_nothing(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    await publisher.publish(1, policy.buckets())
    report = await publisher.publish(2, policy.buckets())
    assert report.bytes == 0 and all(holds(server, policy.wire) and server.version == "2" for server in servers)


async def test_the_same_version_again_sends_all_weights(pool, servers, tmp_path):
    """The parity guard asks for this when an engine seems to compute with other weights."""
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    for version in (1, 2):
        policy.step()
        await publisher.publish(version, policy.buckets())
    servers[0].model["q.weight"].zero_()
    report = await publisher.publish(2, policy.buckets())
    assert report.bytes >= report.whole_bytes and all(holds(server, policy.wire) for server in servers)


async def test_an_engine_that_restarted_between_two_deltas_gets_all_weights_and_the_other_only_changes(
    pool, servers, tmp_path
):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    await publisher.publish(1, policy.buckets())
    servers[0].restart()
    policy.step()
    for server in servers:
        server.routes.clear()
    begun: dict[int, list[bytes]] = {1: [], 2: []}
    for number, server in enumerate(servers, start=1):
        server.behave["/begin"] = lambda request, body, at=begun[number]: at.append(body)
    report = await publisher.publish(2, policy.buckets())
    assert all(holds(server, policy.wire) for server in servers)
    assert b'"base":null' in begun[1][0] and b'"base":"1-' in begun[2][0]
    assert report.bytes >= report.whole_bytes and report.fallbacks == 0


async def test_an_engine_that_comes_back_takes_up_all_weights_at_once(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    for version in (1, 2):
        policy.step()
        await publisher.publish(version, policy.buckets())
    servers[1].restart()
    member = pool.members[1]
    assert await pool.replay(member) and holds(servers[1], policy.wire) and member.version == 2
    policy.step()
    report = await publisher.publish(3, policy.buckets())
    assert report.bytes < 0.1 * report.whole_bytes, "after the replay it follows again by changes"
    assert all(holds(server, policy.wire) for server in servers)


async def test_a_flipped_bit_is_found_and_that_engine_gets_all_weights(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    await publisher.publish(1, policy.buckets())
    policy.step()
    store = servers[0].taking.store
    store._dense.bits("q.weight")[17] ^= 1
    report = await publisher.publish(2, policy.buckets())
    assert report.fallbacks == 1 and report.metrics()["sync/delta_fallbacks"] == 1
    assert all(holds(server, policy.wire) for server in servers)


async def test_a_truncated_body_is_refused_and_sent_again(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    cut: list[int] = []

    def truncate(request: web.Request, body: bytes) -> bytes | None:
        cut.append(len(body))
        return body[:-1] if len(cut) == 1 else None

    servers[0].behave["/chunk"] = truncate
    await publisher.publish(1, policy.buckets())
    assert len(cut) == 3, "two files, one of them twice"
    assert all(holds(server, policy.wire) for server in servers)


async def test_an_altered_body_that_never_gets_better_ends_the_publication(pool, servers, tmp_path):
    servers[0].behave["/chunk"] = lambda request, body: b"\0" * len(body)
    with pytest.raises(InfrastructureFault, match=r"engine 0.*checksum"):
        await publisher_of(pool, tmp_path, "full").publish(1, Policy().buckets())
    assert servers[0].routes.count("/chunk") >= upload.ATTEMPTS
    assert "/pause" not in servers[0].calls and not servers[0].model


async def test_a_trainer_that_fails_amid_a_delta_sends_all_weights_next_time(pool, servers, tmp_path):
    publisher, policy = publisher_of(pool, tmp_path, "delta"), Policy()
    await publisher.publish(1, policy.buckets())
    policy.step()

    def broken():
        yield policy.buckets()[0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        await publisher.publish(2, broken())
    servers[1].restart()
    assert not await pool.replay(pool.members[1]), "the trainer's copy is of no version now"
    report = await publisher.publish(3, policy.buckets())
    assert report.bytes >= report.whole_bytes
    assert all(holds(server, policy.wire) for server in servers)


async def test_another_trainers_weights_are_never_the_base_of_a_delta(pool, servers, tmp_path):
    mine, theirs = publisher_of(pool, tmp_path, "delta"), publisher_of(pool, tmp_path, "delta")
    policy, other = Policy(), Policy()
    other.step(1.0)
    await mine.publish(1, policy.buckets())
    await theirs.publish(1, other.buckets())
    policy.step()
    report = await mine.publish(2, policy.buckets())
    assert report.bytes >= report.whole_bytes and all(holds(server, policy.wire) for server in servers)


async def test_an_engine_without_the_routes_is_named(pool, servers, tmp_path):
    for server in servers:
        server.behave[""] = lambda request, body: web.Response(status=404, text="Not Found")
    with pytest.raises(InfrastructureFault, match=r"does not take weights over HTTP.*weight_sync\.md"):
        await publisher_of(pool, tmp_path, "delta").publish(1, Policy().buckets())


@pytest.mark.parametrize("backend", ["shm", "nccl", "ipc"])
async def test_changes_travel_by_http_only(pool, tmp_path, backend):
    with pytest.raises(ConfigError, match="mode is delta"):
        WeightPublisher(pool, backend=backend, sync_mode="delta", files=WeightFiles(tmp_path, tmp_path))


async def test_a_float32_engine_gets_what_the_trainer_has(servers, tmp_path):
    async with EnginePool(EngineSettings(urls=(servers[0].url,), dtype="float32")) as pool:
        policy, publisher = Policy(), publisher_of(pool, tmp_path, "delta")
        for version in (1, 2):
            policy.step()
            report = await publisher.publish(version, policy.buckets())
            assert holds(servers[0], policy.masters)
        assert report.whole_bytes == 4 * (300 * 200 + 100 * 200 + 200)
