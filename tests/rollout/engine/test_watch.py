"""Supervision of a server: when it counts as down, hung or only late."""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio
from aiohttp import web

from tau2_lightning.rollout.engine.member import EngineMember
from tau2_lightning.rollout.engine.watch import Watch
from tests.rollout.engine.test_pool import GENERATE, SAMPLING, answering, hang
from tests.rollout.proxy.rig import until


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Shorten the interval of supervision, which is chosen for real servers."""
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.WATCH_SECONDS", 0.01)


class Process:
    """A fake process of a launched server."""

    alive = True

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True
        self.alive = False

    async def stop(self) -> None:
        pass


@pytest_asyncio.fixture
async def launched(pool, servers, monkeypatch) -> EngineMember:
    """The first server, as if the pool had launched it, with a request that has had no output for long."""
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 0.3)
    for watching in pool._watches:
        await watching.end()
    member = pool.members[0]
    member.server, member.inflight = Process(), 1
    member.progress_at -= 10
    servers[0].behave[GENERATE] = hang  # new requests wait in the queue
    servers[0].calls.clear()
    return member


@pytest.mark.parametrize("state", ["hung", "queue is long", "a request ended", "paused"])
async def test_only_a_core_that_is_silent_hangs(pool, servers, launched, state, monkeypatch):
    if state == "queue is long":  # the core answers, also when this machine is busy
        monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 10.0)
    else:
        servers[0].behave["/is_paused"] = hang
    asking = asyncio.create_task(Watch(launched, pool).hangs())
    await until(lambda: "/is_paused" in servers[0].calls)
    pool.paused = state == "paused"
    launched.progress_at += 10 * (state == "a request ended")
    assert await asking == (state == "hung")


async def test_a_hung_engine_is_killed_and_an_idle_one_is_not_even_asked(pool, servers, launched):
    servers[0].behave["/is_paused"] = hang
    launched.inflight = 0
    watch = asyncio.create_task(Watch(launched, pool).until_down())
    await until(lambda: time.monotonic() - launched.progress_at < 1)  # the watch has checked it
    assert "/is_paused" not in servers[0].calls and launched.server.alive
    launched.inflight = 1
    await asyncio.wait_for(watch, 20)
    assert launched.server.killed and not launched.ready


@pytest.mark.parametrize("dead", [True, False])
async def test_a_server_that_dies_in_a_weight_sync_is_killed_before_the_syncs_deadline(pool, servers, launched, dead):
    """When vLLM's core dies, the API server waits for the end of its requests, the sync's among them: a deadlock."""
    pool.paused = True
    if dead:
        servers[0].behave["/health"] = lambda *_: web.Response(status=503)
    asked = launched.progress_at
    watch = asyncio.create_task(Watch(launched, pool).until_down())
    if dead:
        await asyncio.wait_for(watch, 20)
    await until(lambda: dead or launched.progress_at > asked)
    watch.cancel()
    assert launched.server.killed == dead and launched.server.alive != dead
    assert ("during a weight sync" in launched.waits.why) == dead


class Steps:
    """An engine core whose steps take ``step`` seconds, which uses ``cores`` cores meanwhile."""

    def __init__(self, step: float, cores: float) -> None:
        self.step, self.cores, self.began = step, cores, time.monotonic()

    async def end(self, request: web.Request, body: object) -> None:
        """Answers between two steps."""
        await asyncio.sleep(self.step - (time.monotonic() - self.began) % self.step)

    def used(self, request: web.Request, body: object) -> web.Response:
        return web.json_response({"cpu_seconds": 40 + self.cores * (time.monotonic() - self.began)})


# In units of STALL_SECONDS, here .3 s: two minutes are four, STEP_SECONDS are ten.
@pytest.mark.parametrize(
    ("step", "cores", "hung"),
    [
        (0.1, 0.0, False),  # steps end; on CUDA the processor may idle meanwhile
        (1.3, 1.5, False),  # a long step computes
        (60.0, 0.0, True),  # a deadlock
        (60.0, 0.001, True),  # a deadlock in which some thread looks at a clock
        (60.0, 1.0, True),  # an endless loop
    ],
)
async def test_an_engine_without_an_answer_for_two_minutes_is_restarted_only_without_progress(
    pool, servers, launched, monkeypatch, step, cores, hung
):
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STEP_SECONDS", 3.0)
    core = Steps(step, cores)
    servers[0].behave |= {"/is_paused": core.end, "/cpu_seconds": core.used}
    watch = asyncio.create_task(Watch(launched, pool).until_down())
    await asyncio.wait((watch,), timeout=1.2 if not hung else 20)
    assert launched.server.killed == hung == watch.done() and launched.ready != hung
    if hung:
        spent = time.monotonic() - core.began
        assert (spent > 3.0) == (cores == 1.0), "only what computes is given STEP_SECONDS"
    watch.cancel()


async def test_a_hung_remote_server_loses_its_requests_to_another(pool, servers, monkeypatch):
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.HEALTH_SECONDS", 0.05)
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 0.2)
    servers[0].behave |= {GENERATE: hang, "/is_paused": hang}
    work = [asyncio.create_task(pool.generate([1], SAMPLING, deadline=30)) for _ in range(2)]
    assert {(await asyncio.wait_for(task, 10)).token_ids[0] for task in work} == {2}
    assert not pool.members[0].ready  # /health still answers
    servers[0].behave.clear()
    await pool.wait_until(lambda: pool.members[0].ready, 5, "waiting")


async def test_a_remote_server_without_the_route_is_taken_as_working(pool, servers, monkeypatch):
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.HEALTH_SECONDS", 0.01)
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.STALL_SECONDS", 0.05)
    asked = []

    def missing(request: web.Request, body: object) -> web.Response:
        asked.append(1)
        return web.Response(status=404)

    for server in servers:
        server.behave |= {GENERATE: hang, "/is_paused": missing}
    work = asyncio.create_task(pool.generate([1], SAMPLING, deadline=30))
    await until(lambda: len(asked) > 3)
    assert all(member.ready for member in pool.members) and not work.done()
    work.cancel()


async def test_a_remote_server_may_be_late_once(pool, servers, monkeypatch):
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.HEALTH_SECONDS", 0.01)
    looks = []

    def late(request: web.Request, body: object) -> web.Response | None:
        looks.append(1)
        return web.Response(status=503) if len(looks) % 3 else None

    servers[0].behave["/health"] = late
    await until(lambda: len(looks) > 12)
    assert all(member.ready for member in pool.members)
    servers[0].behave["/health"] = lambda request, body: web.Response(status=503)
    await until(lambda: not pool.members[0].ready)


async def test_a_remote_server_that_leaves_and_returns_is_brought_up_anew(pool, servers, monkeypatch):
    monkeypatch.setattr("tau2_lightning.rollout.engine.watch.HEALTH_SECONDS", 0.05)
    replayed: list[str] = []

    async def replay(member: EngineMember) -> bool:
        replayed.append(member.name)
        return True

    pool.replay = replay
    servers[0].behave["/health"] = answering(503)
    await pool.wait_until(lambda: not pool.members[0].ready, 5, "waiting")
    assert {(await pool.generate([1], SAMPLING, deadline=5)).token_ids[0] for _ in range(4)} == {2}
    servers[0].behave.clear()
    await pool.wait_until(lambda: pool.members[0].ready, 5, "waiting")
    assert replayed == ["engine 0"]
