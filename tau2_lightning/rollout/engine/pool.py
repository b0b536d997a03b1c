"""One or many vLLM servers as one Engine: routing, deadlines, retry elsewhere, restart with the current weights."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import structlog

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault

from .client import EngineClient, EngineRejected
from .generation import Generation, SamplingParams
from .member import EngineMember
from .server import EngineServer, EngineSettings

__all__ = ["EngineMember", "EnginePool", "EngineRejected", "EngineSettings", "PauseMode"]

log = structlog.get_logger(__name__)
T = TypeVar("T")
PauseMode = Literal["wait", "keep", "abort"]
Replay = Callable[["EngineMember"], Coroutine[Any, Any, bool]]

WATCH_SECONDS = 0.2
HEALTH_SECONDS = 2.0
CONTROL_SECONDS = 60.0
STALL_SECONDS = 30.0
HEALTH_MISSES = 3  # in a row, of a remote server
REMEMBERED_SESSIONS = 100_000


class EnginePool:
    """Implements ``Engine`` over the servers of ``settings``.

    ``await start()`` launches and returns; ``await wait_ready()`` returns when every server answers, or raises why not
    (ConfigError, InfrastructureFault, DeadlineExceeded). Requests of a session stay with one server, for its prefix
    cache. ``replay``, set by the WeightPublisher, brings the current weights into a restarted server before it serves;
    it returns False when it has none to bring.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.members: list[EngineMember] = []
        self.replay: Replay | None = None
        self.faults: Counter[str] = Counter()
        self.paused = False
        self._routes: OrderedDict[str, EngineMember] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._max_model_len = settings.max_model_len

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens, that every engine takes."""
        return self._max_model_len

    async def start(self) -> None:
        """Launch the servers (or take up the running ones) and watch over them; returns at once."""
        s = self.settings
        if s.urls:
            for index, url in enumerate(s.urls):
                self.members.append(EngineMember(EngineClient(url, api_key=s.api_key, name=f"engine {index}"), None))
        else:
            servers = [EngineServer(s, index) for index in range(s.data_parallel)]
            for server in servers:  # all of them before anything is launched
                server.claim_port()
            for server in servers:
                server.start()
                client = EngineClient(server.url, api_key=s.api_key, name=server.name, forward_seed=True)
                self.members.append(EngineMember(client, server))
        for member in self.members:
            task = asyncio.create_task(self._watch(member), name=f"watch {member.name}")
            task.add_done_callback(partial(self._gave_up, member))
            self._tasks.append(task)

    async def wait_ready(self) -> None:
        """Wait until every server serves. Call after ``start``."""
        while not all(member.ready for member in self.members):
            if failure := next((member.failure for member in self.members if member.failure), None):
                raise failure
            await self._wait_for_change()

    async def stop(self) -> None:
        """Stop watching, end the servers and close the connections. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for member in self.members:
            member.ready = False
        try:
            await asyncio.gather(*(member.server.stop() for member in self.members if member.server))
        finally:
            await asyncio.gather(*(member.client.close() for member in self.members))

    async def __aenter__(self) -> EnginePool:
        await self.start()
        await self.wait_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        """Sample one continuation; see ``Engine``. An engine's failure is retried on another (or restarted) one."""
        return await self._attempt(
            lambda client: client.generate(token_ids, sampling), session=session, deadline=deadline, doing="generating"
        )

    async def score(self, token_ids: Sequence[int], *, deadline: float) -> list[float]:
        """Log-probability of each token given those before it; see ``Engine``."""
        return await self._attempt(
            lambda client: client.score(token_ids), session=None, deadline=deadline, doing="scoring"
        )

    async def score_everywhere(self, token_ids: Sequence[int], *, deadline: float) -> dict[str, list[float]]:
        """``score`` of every server that serves, by name. One that goes down meanwhile is left out."""

        async def scored(member: EngineMember) -> list[float] | None:
            attempt = 0
            while member.ready:
                attempt += 1
                try:
                    return await self.within(member, member.client.score(token_ids), deadline, "scoring")
                except InfrastructureFault as fault:
                    await self._note(member, fault)
                    if member.ready and (attempt >= self.settings.attempts or isinstance(fault, DeadlineExceeded)):
                        raise
            return None

        members = [member for member in self.members if member.ready]
        answers = await asyncio.gather(*map(scored, members))
        return {m.name: answer for m, answer in zip(members, answers, strict=True) if answer is not None}

    async def stream(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> AsyncIterator[Generation]:
        """Sample one continuation in chunks; see ``Engine``. Retried elsewhere until the first chunk is out."""
        ends, tried, begun = time.monotonic() + deadline, set[str](), False
        while True:
            member = await self._pick(session, tried, ends, deadline)
            chunks = member.client.stream(token_ids, sampling)
            member.inflight += 1
            try:
                while True:
                    try:
                        async with asyncio.timeout(ends - time.monotonic()):
                            chunk = await anext(chunks)
                    except StopAsyncIteration:
                        return
                    except TimeoutError as error:
                        raise self._late(member, deadline, "streaming") from error
                    member.progress_at, begun = time.monotonic(), True
                    yield chunk
            except InfrastructureFault as fault:
                await self._note(member, fault)
                tried.add(member.name)
                if begun or isinstance(fault, DeadlineExceeded) or self._exhausted(tried):
                    raise
            finally:
                member.inflight -= 1
                await chunks.aclose()  # type: ignore[attr-defined]  # an async generator behind its protocol

    async def health(self) -> dict[str, bool]:
        """Per server: whether it answers and serves the current weights."""
        answers = await asyncio.gather(*(member.client.healthy() for member in self.members))
        return {m.name: m.ready and ok for m, ok in zip(self.members, answers, strict=True)}

    async def pause(self, mode: PauseMode = "keep", *, deadline: float = CONTROL_SECONDS) -> None:
        """Stop scheduling everywhere: ``wait`` drains, ``keep`` freezes, ``abort`` ends requests early."""
        self.paused = True
        await self._everywhere(lambda m: m.client.control("/pause", mode=mode), deadline, f"pausing ({mode})")

    async def resume(self, *, deadline: float = CONTROL_SECONDS) -> None:
        """Schedule again after ``pause``."""
        await self._everywhere(lambda m: m.client.control("/resume"), deadline, "resuming")
        self.paused = False

    async def reset_prefix_cache(self, *, deadline: float = CONTROL_SECONDS) -> None:
        """Forget cached prefixes; running requests recompute theirs."""
        work = "resetting the prefix cache"
        await self._everywhere(
            lambda m: m.client.control("/reset_prefix_cache", reset_running_requests="true"), deadline, work
        )

    async def set_weight_version(self, version: int, *, deadline: float = CONTROL_SECONDS) -> None:
        """Label what is served without changing it."""
        body = {"new_version": str(version)}
        await self._everywhere(
            lambda m: m.client.control("/update_weight_version", body), deadline, "naming the version"
        )
        for member in self.members:
            member.version = version

    async def within(self, member: EngineMember, work: Coroutine[Any, Any, T], seconds: float, doing: str) -> T:
        """Await ``work`` of ``member`` for at most ``seconds``; DeadlineExceeded names the engine."""
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise self._late(member, seconds, doing) from error

    async def wait_until(self, done: Callable[[], bool], seconds: float, doing: str) -> None:
        """Wait until ``done()``; raises a member's permanent failure, or DeadlineExceeded."""
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    if failure := next((member.failure for member in self.members if member.failure), None):
                        raise failure
                    await self._wait_for_change()
        except TimeoutError as error:
            raise DeadlineExceeded("engine", seconds, doing) from error

    async def _attempt(
        self,
        call: Callable[[EngineClient], Coroutine[Any, Any, T]],
        *,
        session: str | None,
        deadline: float,
        doing: str,
    ) -> T:
        ends, tried = time.monotonic() + deadline, set[str]()
        attempt = 0
        while True:
            member = await self._pick(session, tried, ends, deadline)
            member.inflight += 1
            attempt += 1
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    answer = await call(member.client)
                member.progress_at = time.monotonic()
                return answer
            except TimeoutError as error:
                raise self._late(member, deadline, doing) from error
            except InfrastructureFault as fault:
                await self._note(member, fault)
                tried.add(member.name)
                if attempt >= self.settings.attempts:
                    raise
                if self._exhausted(tried):
                    tried.clear()
                    await asyncio.sleep(min(WATCH_SECONDS * 2**attempt, max(0.0, ends - time.monotonic())))
            finally:
                member.inflight -= 1

    async def _pick(self, session: str | None, avoid: Iterable[str], ends: float, deadline: float) -> EngineMember:
        """The session's server if it serves, else the least loaded one; waits for a restart if none serves."""
        while True:
            if session is not None and (known := self._routes.get(session)) and known.ready and known.name not in avoid:
                return known
            serving = [member for member in self.members if member.ready]
            if chosen := min(
                [m for m in serving if m.name not in avoid] or serving, key=lambda m: m.inflight, default=None
            ):
                if session is not None:
                    self._routes[session] = chosen
                    self._routes.move_to_end(session)
                    if len(self._routes) > REMEMBERED_SESSIONS:
                        self._routes.popitem(last=False)
                return chosen
            if self.members and all(member.failure for member in self.members):
                raise InfrastructureFault("engine", "crash", str(self.members[0].failure))
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    await self._wait_for_change()
            except TimeoutError as error:
                names = ", ".join(member.name for member in self.members)
                raise DeadlineExceeded("engine", deadline, f"waiting for one of {names} to serve") from error

    def _exhausted(self, tried: set[str]) -> bool:
        return all(member.name in tried for member in self.members)

    async def _note(self, member: EngineMember, fault: InfrastructureFault) -> None:
        """Count a failed request; a launched server that is dying is put out of its misery, so that a new one comes."""
        self.faults[f"{fault.component}:{fault.cause}"] += 1
        log.warning("engine request failed", engine=member.name, cause=fault.cause, message=str(fault)[:300])
        if member.server is None or not member.ready or isinstance(fault, DeadlineExceeded):
            return
        # vLLM's API server outlives its engine core by seconds, and would use up every attempt.
        life = member.restarts
        healthy = await member.client.healthy(seconds=2.0)
        if not healthy and member.ready and member.restarts == life:  # still the server that failed
            member.condemn(f"unhealthy after {fault.cause}")

    def _late(self, member: EngineMember, seconds: float, doing: str) -> DeadlineExceeded:
        return DeadlineExceeded("engine", seconds, f"{doing} on {member.name} at {member.client.url}")

    async def _everywhere(
        self, call: Callable[[EngineMember], Coroutine[Any, Any, Any]], seconds: float, doing: str
    ) -> None:
        await asyncio.gather(*(self.within(m, call(m), seconds, doing) for m in self.members if m.ready))

    async def _wait_for_change(self) -> None:
        await self._changed.wait()

    def announce(self) -> None:
        """Wake those who wait for a member's state to change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch(self, member: EngineMember) -> None:
        """Bring a server up, watch it, and again after each crash."""
        while True:
            await self._bring_up(member)
            await self._until_down(member)
            member.ready = member.stale = False
            self.announce()
            if member.server is None:
                continue
            self.faults["engine:crash"] += 1
            member.restarts += 1
            if member.restarts > self.settings.max_restarts:
                message = f"{member.name} died {member.restarts} times\n{member.server.log_tail()}"
                raise InfrastructureFault("engine", "crash", message)
            log.warning("engine restarts", engine=member.name, restarts=member.restarts)
            await member.server.restart()

    def _gave_up(self, member: EngineMember, watch: asyncio.Task[None]) -> None:
        """Whatever ended the watch over a member is its failure, which everyone who waits for it gets to see."""
        if watch.cancelled():
            return
        error = watch.exception()
        member.ready, member.failure = False, error if isinstance(error, Exception) else None
        if member.server:
            member.server.kill()
        self.announce()

    async def _bring_up(self, member: EngineMember) -> None:
        client, limit = member.client, self.settings.start_timeout_s
        if member.server:
            seconds = await member.server.wait_ready()
            client.url = member.server.url
            log.info("engine answers", engine=member.name, seconds=round(seconds, 1), log=str(member.server.log_path))
            await self.within(
                member, client.control("/update_weight_version", {"new_version": "0"}), limit, "preparing"
            )
            # The first request with log-probs pays for one-time work; better here than in an episode.
            await self.within(member, client.generate([1, 2, 3], SamplingParams(max_tokens=2)), limit, "warming up")
        else:
            await self.within(member, self._until_healthy(client), limit, "waiting for its first answer")
            self._max_model_len = min(self._max_model_len, await client.served_length())
        current = True
        if self.replay:
            async with member.lock:
                current = await self.within(member, self.replay(member), limit, "replaying the current weights")
        member.ready, member.stale, member.progress_at = current, not current, time.monotonic()
        self.announce()

    async def _until_healthy(self, client: EngineClient) -> None:
        while True:
            if await client.healthy():
                return
            await asyncio.sleep(WATCH_SECONDS)

    async def _until_down(self, member: EngineMember) -> None:
        """Return when the server has ended, does not answer (a remote one), or hangs and was killed for it."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if member.server is None:
                await asyncio.sleep(HEALTH_SECONDS)
                if not await self._any_health(member.client):
                    return  # it may come back with other weights, so it is brought up anew
                continue
            if not member.server.alive:
                return
            stalled = time.monotonic() - member.progress_at > STALL_SECONDS
            if stalled and member.inflight and not self.paused and await self._hangs(member):
                member.condemn(f"no answer for {STALL_SECONDS:g} s")
                return
            if stalled:
                member.progress_at = time.monotonic()

    async def _hangs(self, member: EngineMember) -> bool:
        """Whether the engine core says nothing for ``STALL_SECONDS`` more, in which no request ends either.

        A publication that begins meanwhile has a deadline of its own.
        """
        seen = member.progress_at
        if await member.client.responds(STALL_SECONDS):
            return False
        return member.progress_at == seen and not self.paused

    async def _any_health(self, client: EngineClient) -> bool:
        """Whether one of ``HEALTH_MISSES`` looks finds it healthy: a busy server may be late once."""
        for _ in range(HEALTH_MISSES):
            if await client.healthy():
                return True
            await asyncio.sleep(WATCH_SECONDS)
        return False
