"""The publishing sequence, its failures and the files that it leaves, with scripted servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from aiohttp import web
from safetensors.torch import load_file

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.rollout.engine.fake_vllm import FakeVLLM
from tests.rollout.proxy.rig import until

TENSORS = [(f"layer.{i}.weight", torch.full((10, 10), float(i))) for i in range(5)]  # 400 bytes each
BUCKETS = [TENSORS[:2], TENSORS[2:4], TENSORS[4:]]  # in the form of a strategy's buckets
STEPS = ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/resume"]


@pytest.fixture
def pool(pool: EnginePool, servers: list[FakeVLLM]) -> EnginePool:
    """The pool, without the recorded calls of its start."""
    for server in servers:
        server.calls.clear()
    return pool


@pytest.fixture
def files(tmp_path: Path) -> WeightFiles:
    return WeightFiles(shared=tmp_path, fallback=tmp_path)


async def test_every_server_takes_every_step_in_order(pool, servers, files):
    seen: list[dict[str, torch.Tensor]] = []
    servers[0].behave["/update_weights"] = lambda request, body: seen.append(load_file(body["update_info"]["path"]))
    report = await WeightPublisher(pool, files=files).publish(3, BUCKETS, mode="keep")
    steps = [*STEPS[:2], *["/update_weights"] * 3, *STEPS[3:]]
    assert [server.calls for server in servers] == [steps, steps]
    assert [server.version for server in servers] == ["3", "3"]
    assert [list(bucket) for bucket in seen] == [[name for name, _ in bucket] for bucket in BUCKETS]
    assert {n: float(t[0, 0]) for bucket in seen for n, t in bucket.items()} == {n: float(t[0, 0]) for n, t in TENSORS}
    assert report.version == 3 and report.bytes == 2000 and not report.restarted
    assert set(report.seconds) == {"gather", "write", "send", "pause", "load", "resume", "total"}
    assert (await pool.generate([1], SamplingParams(max_tokens=1), deadline=5)).versions == (3, 3, 3)


async def test_an_update_that_a_killed_trainer_began_is_ended_first(pool, servers, files):
    """A server of ``rollout.engine_urls`` outlives its trainer, and vLLM refuses to begin a second update."""
    begun = [True]

    def begin(request: web.Request, body: dict) -> web.Response | None:
        text = "start_weight_update called while a weight update is already active. Call finish_weight_update first."
        return web.json_response({"error": {"message": text}}, status=500) if begun else None

    def finish(request: web.Request, body: dict) -> None:
        begun.clear()

    servers[0].behave |= {"/start_weight_update": begin, "/finish_weight_update": finish}
    await WeightPublisher(pool, files=files).publish(3, [TENSORS], mode="keep")
    ended = ["/finish_weight_update", "/start_weight_update"]
    assert [server.calls for server in servers] == [[*STEPS[:2], *ended, *STEPS[2:]], STEPS]
    assert [server.version for server in servers] == ["3", "3"]
    servers[1].behave["/start_weight_update"] = lambda *_: web.json_response({"error": "another"}, status=500)
    with pytest.raises(InfrastructureFault, match="another"):
        await WeightPublisher(pool, files=files).publish(4, [TENSORS], mode="keep")


async def test_streaming_keeps_one_bucket_at_a_time(pool, servers, files, tmp_path):
    present: list[int] = []
    names: list[str] = []

    def look(request: web.Request, body: dict) -> None:
        present.append(len(list(tmp_path.rglob("*.safetensors"))))
        names.extend(load_file(body["update_info"]["path"]))

    servers[0].behave["/update_weights"] = look
    publisher = WeightPublisher(pool, files=files, keep_snapshot=False)
    await publisher.publish(1, BUCKETS)
    assert present == [1, 1, 1] and names == [name for name, _ in TENSORS]
    assert not list(tmp_path.rglob("*.safetensors"))


async def test_a_snapshot_lasts_until_the_next_one(pool, files, tmp_path):
    publisher = WeightPublisher(pool, files=files)
    for version in (1, 2):
        await publisher.publish(version, BUCKETS)
        kept = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
        assert kept == [f"v{version}-{i}.safetensors" for i in range(3)]
    await publisher.close()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("keep", [True, False])
async def test_a_publication_without_a_tensor_is_refused(pool, servers, files, keep):
    with pytest.raises(ValueError, match="no tensor was published as version 1: all buckets were empty"):
        await WeightPublisher(pool, files=files, keep_snapshot=keep).publish(1, [[], []])
    assert "1" not in [server.version for server in servers]
    assert all(server.calls.count("/pause") == server.calls.count("/resume") for server in servers)


@pytest.mark.parametrize("step", STEPS[:-1])
async def test_a_failing_step_is_loud_and_resumes_everyone(pool, servers, files, step):
    servers[1].behave[step] = lambda request, body: web.Response(status=500, text="broken")
    with pytest.raises(InfrastructureFault, match=r"engine 1.*broken"):
        await WeightPublisher(pool, files=files).publish(1, BUCKETS)
    assert all(server.calls[-1] == "/resume" for server in servers)
    assert not pool.members[1].ready  # it may have only a part of the new weights
    servers[1].behave.clear()
    await WeightPublisher(pool, files=files).publish(2, BUCKETS)
    assert all(member.ready and member.version == 2 for member in pool.members)


async def test_a_prefix_cache_that_stays_is_a_fault(pool, servers, files):
    servers[0].behave["/reset_prefix_cache"] = lambda request, body: web.json_response({"success": False})
    with pytest.raises(InfrastructureFault, match="prefix cache"):
        await WeightPublisher(pool, files=files).publish(1, BUCKETS)


async def test_a_hanging_step_ends_at_the_deadline(pool, servers, files):
    async def hang(request: web.Request, body: object) -> None:
        await asyncio.sleep(60)

    servers[0].behave["/update_weights"] = hang
    with pytest.raises(InfrastructureFault, match=r"engine 0.*publishing weights \(load\)") as caught:
        await WeightPublisher(pool, files=files, timeout=0.5).publish(1, BUCKETS)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert all(server.calls[-1] == "/resume" for server in servers)


async def test_a_trainer_that_fails_while_giving_weights_resumes_everyone(pool, servers, files):
    def broken():
        yield BUCKETS[0]
        raise RuntimeError("out of memory")

    publisher = WeightPublisher(pool, files=files, keep_snapshot=False)
    with pytest.raises(RuntimeError, match="out of memory"):
        await publisher.publish(1, broken())
    assert all("/resume" in server.calls for server in servers)
    assert not any(member.ready for member in pool.members)


class Launched:
    """A fake process of a server that the pool launched."""

    alive = True

    def __init__(self) -> None:
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1

    async def stop(self) -> None:
        pass


@pytest_asyncio.fixture
async def launched(pool) -> list[Launched]:
    """Make the pool's servers look launched by it; only the test restarts them."""
    for watching in pool._watches:
        await watching.end()
    for member in pool.members:
        member.server = Launched()
    return [member.server for member in pool.members]


async def came_up(pool, member) -> None:
    """Do what the watch of a launched server does when the server answers."""
    async with member.lock:
        current = await pool.replay(member)
    member.ready, member.stale = current, not current
    pool.announce()


async def test_an_engine_that_comes_up_while_files_are_written_takes_the_new_version(pool, servers, launched, files):
    publisher, late = WeightPublisher(pool, files=files), pool.members[1]
    await publisher.publish(1, BUCKETS)
    late.ready = False  # it crashed and starts again
    loop, written = asyncio.get_running_loop(), []

    def buckets():
        yield BUCKETS[0]
        asyncio.run_coroutine_threadsafe(came_up(pool, late), loop).result(10)  # with version 1
        written.append(late.version)
        yield from BUCKETS[1:]

    report = await publisher.publish(2, buckets())
    assert written == [1]
    assert [member.version for member in pool.members] == [2, 2] and late.ready
    assert servers[1].version == "2" and report.restarted == ()


async def test_an_engine_that_comes_up_amid_a_publication_takes_what_was_kept(pool, servers, launched, files):
    publisher, late = WeightPublisher(pool, files=files), pool.members[1]
    await publisher.publish(1, BUCKETS)
    late.ready = False

    async def finish(request: web.Request, body: dict) -> None:
        # As with a transport without files, the snapshot exists only after all weights have arrived.
        kept, publisher._current.snapshot = publisher._current.snapshot, None
        await came_up(pool, late)
        assert late.stale
        publisher._current.snapshot = kept

    servers[0].behave["/finish_weight_update"] = finish
    report = await asyncio.wait_for(publisher.publish(2, BUCKETS), 20)
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
        crashed.restarts, crashed.ready = 1, False  # the watch found it dead and started another
        starting.append(asyncio.create_task(up()))
        return web.Response(status=500, text="gone")

    servers[1].behave["/pause"] = crash
    report = await publisher.publish(1, BUCKETS)
    assert launched[1].killed == 0 and report.restarted == ("engine 1",)
    assert crashed.ready and crashed.version == 1


async def test_a_remote_engine_is_paused_while_it_takes_up_weights_again(pool, servers, files):
    publisher = WeightPublisher(pool, files=files)
    await publisher.publish(1, BUCKETS)
    servers[0].calls.clear()
    assert await pool.replay(pool.members[0])
    assert servers[0].calls == [*STEPS[:2], *["/update_weights"] * 3, *STEPS[3:]]


async def test_an_unknown_backend_is_refused(pool):
    with pytest.raises(ConfigError, match="carrier-pigeon"):
        WeightPublisher(pool, backend="carrier-pigeon")
