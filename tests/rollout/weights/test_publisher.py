"""The publishing sequence, its failures and the files it leaves, against scripted servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from aiohttp import web
from safetensors.torch import load_file

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault, ParityError
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool, EngineSettings
from tau2_lightning.rollout.weights.files import WeightFiles, buckets
from tau2_lightning.rollout.weights.parity import check_parity, default_tolerance
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.rollout.engine.fake_vllm import FakeVLLM
from tests.rollout.proxy.rig import until

TENSORS = [(f"layer.{i}.weight", torch.full((10, 10), float(i))) for i in range(5)]  # 400 bytes each
STEPS = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/resume"]


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[list[FakeVLLM]]:
    made = [await FakeVLLM().start() for _ in range(2)]
    yield made
    for server in made:
        await server.stop()


@pytest_asyncio.fixture
async def pool(servers: list[FakeVLLM]) -> AsyncIterator[EnginePool]:
    async with EnginePool(EngineSettings(urls=tuple(server.url for server in servers))) as made:
        for server in servers:
            server.calls.clear()
        yield made


@pytest.fixture
def files(tmp_path: Path) -> WeightFiles:
    return WeightFiles(shared=tmp_path, fallback=tmp_path)


async def test_every_server_takes_every_step_in_order(pool, servers, files):
    seen: list[dict[str, torch.Tensor]] = []
    servers[0].behave["/update_weights"] = lambda request, body: seen.append(load_file(body["update_info"]["path"]))
    report = await WeightPublisher(pool, files=files).publish(3, TENSORS, mode="keep")
    assert [server.calls for server in servers] == [STEPS, STEPS]
    assert [server.version for server in servers] == ["3", "3"]
    assert {name: float(tensor[0, 0]) for name, tensor in seen[0].items()} == {n: float(t[0, 0]) for n, t in TENSORS}
    assert report.version == 3 and report.bytes == 2000 and not report.restarted
    assert set(report.seconds) == {"gather", "write", "pause", "load", "reset", "resume", "total"}
    assert (await pool.generate([1], SamplingParams(max_tokens=1), deadline=5)).versions == (3, 3, 3)


async def test_streaming_keeps_one_bucket_at_a_time(pool, servers, files, tmp_path):
    present: list[int] = []
    names: list[str] = []

    def look(request: web.Request, body: dict) -> None:
        present.append(len(list(tmp_path.rglob("*.safetensors"))))
        names.extend(load_file(body["update_info"]["path"]))

    servers[0].behave["/update_weights"] = look
    publisher = WeightPublisher(pool, files=files, bucket_bytes=800, keep_snapshot=False)
    await publisher.publish(1, TENSORS)
    assert present == [1, 1, 1] and names == [name for name, _ in TENSORS]
    assert not list(tmp_path.rglob("*.safetensors"))


async def test_a_snapshot_lasts_until_the_next_one(pool, files, tmp_path):
    publisher = WeightPublisher(pool, files=files, bucket_bytes=800)
    for version in (1, 2):
        await publisher.publish(version, TENSORS)
        kept = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
        assert kept == [f"v{version}-{i}.safetensors" for i in range(3)]
    await publisher.close()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("step", STEPS[:-1])
async def test_a_failing_step_is_loud_and_resumes_everyone(pool, servers, files, step):
    servers[1].behave[step] = lambda request, body: web.Response(status=500, text="broken")
    with pytest.raises(InfrastructureFault, match=r"engine 1.*broken"):
        await WeightPublisher(pool, files=files).publish(1, TENSORS)
    assert all(server.calls[-1] == "/resume" for server in servers)
    assert not pool.members[1].ready  # it may hold half of the new weights
    servers[1].behave.clear()
    await WeightPublisher(pool, files=files).publish(2, TENSORS)
    assert all(member.ready and member.version == 2 for member in pool.members)


async def test_a_prefix_cache_that_stays_is_a_fault(pool, servers, files):
    servers[0].behave["/reset_prefix_cache"] = lambda request, body: web.json_response({"success": False})
    with pytest.raises(InfrastructureFault, match="prefix cache"):
        await WeightPublisher(pool, files=files).publish(1, TENSORS)


async def test_a_hanging_step_ends_at_the_deadline(pool, servers, files):
    async def hang(request: web.Request, body: object) -> None:
        await asyncio.sleep(60)

    servers[0].behave["/update_weights"] = hang
    with pytest.raises(InfrastructureFault, match=r"engine 0.*publishing weights \(load\)") as caught:
        await WeightPublisher(pool, files=files, timeout=0.5).publish(1, TENSORS)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert all(server.calls[-1] == "/resume" for server in servers)


async def test_a_trainer_that_fails_while_giving_weights_resumes_everyone(pool, servers, files):
    def broken():
        yield TENSORS[0]
        raise RuntimeError("out of memory")

    publisher = WeightPublisher(pool, files=files, bucket_bytes=400, keep_snapshot=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        await publisher.publish(1, broken())
    assert all("/resume" in server.calls for server in servers)
    assert not any(member.ready for member in pool.members)


class Launched:
    """The process of a server that the pool has launched."""

    alive = True

    def __init__(self) -> None:
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1

    async def stop(self) -> None:
        pass


@pytest.fixture
def launched(pool, monkeypatch) -> list[Launched]:
    """The pool's servers as if it had launched them; nobody restarts them but the test."""
    for task in pool._tasks:
        task.cancel()
    for member in pool.members:
        member.server = Launched()
    return [member.server for member in pool.members]


async def came_up(pool, member) -> None:
    """What the watch over a launched server does once that answers."""
    async with member.lock:
        current = await pool.replay(member)
    member.ready, member.stale = current, not current
    pool.announce()


async def test_an_engine_that_comes_up_while_files_are_written_takes_the_new_version(pool, servers, launched, files):
    publisher, late = WeightPublisher(pool, files=files), pool.members[1]
    await publisher.publish(1, TENSORS)
    late.ready = False  # it crashed, and is starting
    loop, written = asyncio.get_running_loop(), []

    def tensors():
        yield TENSORS[0]
        asyncio.run_coroutine_threadsafe(came_up(pool, late), loop).result(10)  # with version 1
        written.append(late.version)
        yield from TENSORS[1:]

    report = await publisher.publish(2, tensors())
    assert written == [1]
    assert [member.version for member in pool.members] == [2, 2] and late.ready
    assert servers[1].version == "2" and report.restarted == ()


async def test_an_engine_that_comes_up_amid_a_publication_takes_what_was_kept(pool, servers, launched, files):
    publisher, late = WeightPublisher(pool, files=files), pool.members[1]
    await publisher.publish(1, TENSORS)
    late.ready = False

    async def finish(request: web.Request, body: dict) -> None:
        # As where weights travel without files: what is kept is there when all have arrived, and no sooner.
        kept, publisher._snapshot = publisher._snapshot, None
        await came_up(pool, late)
        assert late.stale
        publisher._snapshot = kept

    servers[0].behave["/finish_weight_update"] = finish
    report = await asyncio.wait_for(publisher.publish(2, TENSORS), 20)
    assert (late.version, late.ready, late.stale) == (2, True, False)
    assert servers[1].version == "2" and report.restarted == ("engine 1",)


async def test_a_publication_does_not_kill_the_successor_of_an_engine_that_crashed(pool, servers, launched, files):
    publisher, crashed = WeightPublisher(pool, files=files), pool.members[1]

    async def up() -> None:
        await until(lambda: "/resume" in servers[0].calls)
        servers[1].behave.clear()
        await came_up(pool, crashed)

    starting: list[asyncio.Task[None]] = []

    def crash(request: web.Request, body: dict) -> web.Response:
        crashed.restarts, crashed.ready = 1, False  # the watch has found it dead, and has started another
        starting.append(asyncio.create_task(up()))
        return web.Response(status=500, text="gone")

    servers[1].behave["/pause"] = crash
    report = await publisher.publish(1, TENSORS)
    assert launched[1].killed == 0 and report.restarted == ("engine 1",)
    assert crashed.ready and crashed.version == 1


async def test_a_remote_engine_is_paused_while_it_takes_up_weights_again(pool, servers, files):
    publisher = WeightPublisher(pool, files=files)
    await publisher.publish(1, TENSORS)
    servers[0].calls.clear()
    assert await pool.replay(pool.members[0])
    assert servers[0].calls == STEPS


async def test_an_unknown_backend_is_refused(pool):
    with pytest.raises(ConfigError, match="carrier-pigeon"):
        WeightPublisher(pool, backend="carrier-pigeon")


def test_buckets_hold_every_tensor_once_and_no_more_than_their_size():
    made = list(buckets(TENSORS, 900))
    assert [len(bucket) for bucket in made] == [2, 2, 1]
    assert [name for bucket in made for name in bucket] == [name for name, _ in TENSORS]
    assert [len(bucket) for bucket in buckets(TENSORS, 10)] == [1] * 5  # one tensor larger than a bucket
    assert list(buckets([], 900)) == []


def test_files_are_private_and_orphans_are_swept(tmp_path):
    orphan, unborn = tmp_path / "tau2-lightning-orphan", tmp_path / "tau2-lightning-unborn"
    for folder in (orphan, unborn):
        folder.mkdir()
    for name in (".in-use", "v1.safetensors"):
        (orphan / name).touch()
    other = WeightFiles(shared=tmp_path, fallback=tmp_path)  # as of a process whose id means nothing here
    kept = other.write("v1", dict(TENSORS))
    files = WeightFiles(shared=tmp_path, fallback=tmp_path)
    path = files.write("v1", dict(TENSORS))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not orphan.exists() and unborn.exists() and kept.exists()
    files.close()
    assert not path.exists()
    other.close()
    assert not kept.exists()


def test_full_shared_memory_falls_back(tmp_path, monkeypatch):
    import shutil

    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir(), large.mkdir()
    real = shutil.disk_usage
    usage = type(real(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda p: usage(1, 1, 0) if Path(p).parent == small else real(p))
    assert WeightFiles(shared=small, fallback=large).write("v1", dict(TENSORS)).is_relative_to(large)
    monkeypatch.setattr("shutil.disk_usage", lambda p: usage(1, 1, 0))
    with pytest.raises(OSError, match="no room"):
        WeightFiles(shared=small, fallback=large).write("v1", dict(TENSORS))


class Scores:
    """An engine that scores every row the same way."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    async def score(self, token_ids: list[int], *, deadline: float) -> list[float]:
        return self.values


def test_the_tolerance_follows_from_what_computes():
    assert default_tolerance("float32", "fp32", on_cpu=True) == 1e-3
    assert default_tolerance("float32", "fp32", on_cpu=False) == 0.1
    for dtype, precision in (("bfloat16", "bf16"), ("bfloat16", "fp32"), ("float32", "bf16")):
        assert default_tolerance(dtype, precision, on_cpu=True) == 0.25


async def test_parity_reports_and_raises():
    rows, engine = [[1, 2, 3]], Scores([-1.0, -2.0])
    report = await check_parity(engine, rows, [[-1.0, -2.001]], tolerance=0.01)
    assert report.max == pytest.approx(0.001) and report.mean == pytest.approx(0.0005) and report.tokens == 2
    with pytest.raises(ParityError, match=r"version 4.*-2\.000000 in the engine, -2\.500000 in the trainer.*token 2"):
        await check_parity(engine, rows, [[-1.0, -2.5]], tolerance=0.01, version=4)
    for bad in (float("nan"), float("-inf")):
        with pytest.raises(ParityError):
            await check_parity(engine, rows, [[bad, -2.0]], tolerance=0.01)
    with pytest.raises(ValueError, match="needs 2 log-probs"):
        await check_parity(engine, rows, [[-1.0]], tolerance=0.01)
