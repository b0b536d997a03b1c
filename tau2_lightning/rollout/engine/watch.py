"""Supervision of one server: brings it up, notices when it is down or hangs, and restarts it."""

from __future__ import annotations

import asyncio
import time

import structlog

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.launch.budget import Budget

from .client import EngineClient
from .fleet import Fleet
from .generation import SamplingParams
from .member import EngineMember
from .server import EngineServer
from .sleep import fall_asleep

log = structlog.get_logger(__name__)

WATCH_SECONDS = 0.2
HEALTH_SECONDS = 2.0
HEALTH_MISSES = 3  # in a row, of a remote server
# A server with requests is examined after STALL_SECONDS without an answer. It hangs if its engine core neither ends a
# step nor computes in the next STALL_SECONDS. So a frozen or deadlocked server is found within 80 s.
STALL_SECONDS = 30.0
ASK_SECONDS = 10.0
# Share of one core. A process that waits uses almost nothing; on a busy machine, one that computes may get little more.
WORKING = 0.01
# A step that computes for longer is an endless loop, or a process that spins because a GPU hangs.
STEP_SECONDS = 300.0


class Watch:
    """Keeps ``member`` of ``fleet`` in service. ``start`` begins in the running event loop, ``end`` stops it.

    Whatever error ends the supervision becomes ``member.failure``, so that all tasks that wait for the member see it.
    """

    def __init__(self, member: EngineMember, fleet: Fleet) -> None:
        self.member, self.fleet = member, fleet
        self.budget = Budget(fleet.settings.max_restarts, fleet.settings.restart_window_s)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to supervise."""
        self._task = asyncio.create_task(self._run(), name=f"watch {self.member.name}")
        self._task.add_done_callback(self._gave_up)

    async def end(self) -> None:
        """Stop supervising. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        await self._bring_up()
        while True:
            await self.until_down()
            await self._bring_back()

    async def _bring_back(self) -> None:
        """Bring the server up anew. One that dies while it starts again has died once more: it has served before, so
        the cause may pass, such as memory that another process of the machine has for a moment."""
        member = self.member
        while True:
            member.ready = member.stale = False
            self.fleet.announce()
            if member.server is not None:
                await self._restart(member.server)
            try:
                return await self._bring_up()
            except InfrastructureFault as fault:
                if member.server is None or isinstance(fault, DeadlineExceeded):
                    raise
                member.waits.begin(member.waits.what, str(fault).partition("\n")[0])

    async def _restart(self, server: EngineServer) -> None:
        """Start the server again, within the budget."""
        member = self.member
        self.fleet.faults["engine:crash"] += 1
        member.restarts += 1
        within = self.budget.spend()
        if not within:
            raise InfrastructureFault("engine", "crash", self._given_up(server))
        why = member.waits.why or server.end
        member.waits.begin(f"is restarted ({self.budget}, rollout.max_restarts)", why)
        log.warning("engine restarts", engine=member.name, restarts=member.restarts, why=why)
        await server.restart()

    def _given_up(self, server: EngineServer) -> str:
        """Why the supervision ends, in words."""
        s, name = self.fleet.settings, self.member.name
        return (
            f"{name} died {self.budget.spent} times in {s.restart_window_s:g} s, more than rollout.max_restarts="
            f"{s.max_restarts} in rollout.restart_window allows; the newest: {self.member.waits.why or 'it ended'}\n"
            f"{server.log_tail()}"
        )

    def _gave_up(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error, member = task.exception(), self.member
        member.ready, member.failure = False, error if isinstance(error, Exception) else None
        if member.server:
            member.server.kill()
        self.fleet.announce()

    async def _bring_up(self) -> None:
        """Wait until the server answers, warm it up, and give it the current weights."""
        member, limit = self.member, self.fleet.settings.start_timeout_s
        client = member.client
        if not member.waits.what:
            member.waits.begin("starts" if member.server else "is asked for its first answer")
        if member.server:
            seconds = await member.server.wait_ready()
            client.url = member.server.url
            log.info("engine answers", engine=member.name, seconds=round(seconds, 1), log=str(member.server.log_path))
            await member.within(client.set_version(0), limit, "preparing")
            # The first request with log-probs pays for one-time work; it should not be an episode's.
            await member.within(client.generate([1, 2, 3], SamplingParams(max_tokens=2)), limit, "warming up")
        else:
            await member.within(_until_healthy(client), limit, "waiting for its first answer")
            self.fleet.max_model_len = min(self.fleet.max_model_len, await client.served_length())
        current = True
        if self.fleet.replay:
            async with member.lock:
                current = await member.within(self.fleet.replay(member), limit, "replaying the current weights")
        if self.fleet.asleep:  # the trainer has this memory now
            await fall_asleep(member, self.fleet.settings.sleep_level)
        member.ready, member.stale, member.progress_at = current, not current, time.monotonic()
        if current:
            member.waits.end()
        else:
            member.waits.begin("waits for the next weight sync")
        self.fleet.announce()

    async def until_down(self) -> None:
        """Return when the server has ended, when a remote one does not answer, or when it hangs.

        A hung server, or one that is dead during a weight sync, is then out of service: if this program started it, it
        is killed; if it is remote, its requests fail, so that the pool sends them to another server.
        """
        member = self.member
        while True:
            await asyncio.sleep(WATCH_SECONDS if member.server else HEALTH_SECONDS)
            if not (member.server.alive if member.server else await _any_health(member.client)):
                if member.server is None:
                    member.waits.begin("does not answer; it is asked until it does", "no answer")
                return  # a remote one may come back with other weights, so it is brought up anew
            if time.monotonic() - member.progress_at <= STALL_SECONDS:
                continue
            if member.inflight and not self.fleet.paused and await self.hangs():
                member.take_out_of_service(f"no step ended for {time.monotonic() - member.progress_at:.0f} s")
                if member.server is None:
                    await member.client.close()
                return
            if self.fleet.paused and member.server and not await _any_health(member.client):
                # Its API server hangs. Or its core is dead on a node of an agent, where `EngineServer.alive` cannot see
                # it: the server ends only when the sync has an answer, which that core would give. A core that stands
                # still shows neither here nor there, because the API server answers: the sync's own deadline ends it.
                member.take_out_of_service("it does not answer during a weight sync")
                return
            member.progress_at = time.monotonic()

    async def hangs(self) -> bool:
        """Whether the engine core ends no step and does not compute, and no request ends meanwhile.

        The core answers between two steps, so an answer shows progress, whatever the length of its queue. A long step
        (the prompts of a large model on a CPU, a kernel that is compiled) uses processor time and may take
        ``STEP_SECONDS``. Returns False when a publication begins meanwhile, because that has its own deadline.
        """
        member, seen, began = self.member, self.member.progress_at, time.monotonic()
        with member.waits.during("has ended no step; it is examined whether it still computes", since=seen):
            return await self._hangs(seen, began)

    async def _hangs(self, seen: float, began: float) -> bool:
        member, client = self.member, self.member.client
        used = await client.cpu_seconds(ASK_SECONDS)
        while not await client.responds(STALL_SECONDS):
            if member.progress_at != seen or self.fleet.paused:
                return False
            before, used = used, await client.cpu_seconds(ASK_SECONDS)
            computes = before is not None and used is not None and used - before > WORKING * STALL_SECONDS
            if not computes or time.monotonic() - began > STEP_SECONDS:
                return True
            log.info("engine is in a long step", engine=member.name, seconds=round(time.monotonic() - seen))
        return False


async def _until_healthy(client: EngineClient) -> None:
    # The API server of a hung engine core still says that it is healthy.
    while not await client.healthy() or not await client.responds(STALL_SECONDS):  # noqa: ASYNC110  # another process
        await asyncio.sleep(WATCH_SECONDS)


async def _any_health(client: EngineClient) -> bool:
    """Whether at least one of ``HEALTH_MISSES`` checks finds the server healthy: a busy server may be late once."""
    for _ in range(HEALTH_MISSES):
        if await client.healthy():
            return True
        await asyncio.sleep(WATCH_SECONDS)
    return False
