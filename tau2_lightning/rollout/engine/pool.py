"""One or many servers as one Engine: deadlines, retries on another server, and the life of the servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import structlog

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault

from .backends import client_of
from .cut_off import sample_within, stream_within
from .fleet import Fleet
from .generation import Generation, SamplingParams, Scores
from .member import EngineMember
from .routing import Router
from .server import EngineServer
from .settings import EngineSettings
from .watch import Watch

log = structlog.get_logger(__name__)
T = TypeVar("T")

ATTEMPTS = 3  # per request, each at another server if possible
BACKOFF_SECONDS = 0.2
HEALTH_SECONDS = 10.0  # a dead server refuses immediately; a busy one may be late


class EnginePool(Fleet):
    """Implements ``Engine`` over the servers of ``settings``.

    ``await start()`` starts the servers and returns; ``await wait_ready()`` returns when every server answers, and
    raises ConfigError, InfrastructureFault or DeadlineExceeded when one cannot. As a context manager it does both, and
    stops the servers at the end. ``cut_off`` is the number of completions that their deadline ended.
    """

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._router = Router()
        self._watches: list[Watch] = []
        self.cut_off = 0

    # ------------------------------------------------------------------------------------------------- life cycle

    async def start(self) -> None:
        """Start the servers, or connect to running ones, and supervise them; returns immediately."""
        s = self.settings
        if s.urls:
            clients = [client_of(s, url, f"engine {index}", launched=False) for index, url in enumerate(s.urls)]
            self.members += [EngineMember(client, None) for client in clients]
        else:
            servers = [EngineServer(s, index) for index in range(s.data_parallel)]
            for server in servers:  # all ports are checked before any server starts
                server.claim_port()
            for server in servers:
                server.start()
                self.members.append(EngineMember(client_of(s, server.url, server.name, launched=True), server))
        self._watches = [Watch(member, self) for member in self.members]
        for watch in self._watches:
            watch.start()

    async def wait_ready(self) -> None:
        """Wait until every server serves. Call after ``start``. The servers' own deadlines bound the wait."""
        await self.wait_until(lambda: all(member.ready for member in self.members), None, "starting")

    async def stop(self) -> None:
        """Stop supervising, end the servers and close the connections. Safe to call twice."""
        await asyncio.gather(*(watch.end() for watch in self._watches))
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

    # --------------------------------------------------------------------------------------------------- requests

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> Generation:
        """Sample one continuation; see ``Engine``. After a server's failure another (or restarted) server is asked.

        A completion that ends at its deadline is counted in ``cut_off``. Raises DeadlineExceeded when the engine made
        no progress.
        """

        def sampled(member: EngineMember, seconds: float) -> Coroutine[Any, Any, Generation]:
            return sample_within(member.client, token_ids, sampling, seconds, member.version)

        generation = await self._attempt(sampled, session=session, deadline=deadline, doing="generating")
        self.cut_off += generation.cut
        return generation

    async def score(self, token_ids: Sequence[int], *, deadline: float) -> list[float]:
        """Log-probability (nats) of each token given those before it; see ``Engine``."""

        async def scored(member: EngineMember, seconds: float) -> list[float]:
            async with asyncio.timeout(seconds):
                return (await member.client.score(token_ids)).logprobs

        return await self._attempt(scored, session=None, deadline=deadline, doing=_scoring(token_ids))

    async def score_everywhere(self, token_ids: Sequence[int], *, deadline: float) -> dict[str, Scores]:
        """``score`` of every server that is ready, by name. A server that goes down meanwhile is left out."""
        members = [member for member in self.members if member.ready]
        answers = await asyncio.gather(*(self._score_on(member, token_ids, deadline) for member in members))
        return {m.name: answer for m, answer in zip(members, answers, strict=True) if answer is not None}

    async def stream(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, session: str | None = None, deadline: float
    ) -> AsyncIterator[Generation]:
        """Sample one continuation in chunks; see ``Engine``. Another server is asked only before the first chunk."""
        ends, tried, begun = time.monotonic() + deadline, set[str](), False
        while True:
            member = await self._pick(session, tried, ends, deadline)
            seconds = ends - time.monotonic()
            stream = stream_within(member.client, token_ids, sampling, seconds, member.version)
            with member.request():
                try:
                    async with aclosing(stream) as chunks:
                        async for chunk in chunks:
                            if chunk.cut:
                                self.cut_off += 1
                            else:
                                member.progress_at, begun = time.monotonic(), True
                            yield chunk
                    return
                except TimeoutError as error:
                    late = member.late(deadline, "streaming")
                    await self._note(member, late)
                    raise late from error
                except InfrastructureFault as fault:
                    await self._note(member, fault)
                    tried.add(member.name)
                    if begun or self._all_in(tried):
                        raise

    async def health(self) -> dict[str, bool]:
        """By server: whether it answers and serves the current weights."""
        answers = await asyncio.gather(*(member.client.healthy() for member in self.members))
        return {m.name: m.ready and ok for m, ok in zip(self.members, answers, strict=True)}

    # ------------------------------------------------------------------------------------------- choice and retry

    async def _attempt(
        self,
        call: Callable[[EngineMember, float], Coroutine[Any, Any, T]],
        *,
        session: str | None,
        deadline: float,
        doing: str,
    ) -> T:
        # Written out: tenacity's loop costs 42 us a request (this one 0.6), and the choice of the server, the count of
        # the fault and a wait that begins only when every server has failed would each be a callback beside it.
        ends, tried = time.monotonic() + deadline, set[str]()
        attempt = 0
        while True:
            member = await self._pick(session, tried, ends, deadline)
            attempt += 1
            with member.request():
                try:
                    answer = await call(member, ends - time.monotonic())
                except TimeoutError as error:
                    raise member.late(deadline, doing) from error
                except InfrastructureFault as fault:
                    await self._note(member, fault)
                    tried.add(member.name)
                    if attempt >= ATTEMPTS:
                        raise
                    if self._all_in(tried):
                        tried.clear()
                        await asyncio.sleep(min(BACKOFF_SECONDS * 2**attempt, max(0.0, ends - time.monotonic())))
                else:
                    member.progress_at = time.monotonic()
                    return answer

    async def _score_on(self, member: EngineMember, token_ids: Sequence[int], deadline: float) -> Scores | None:
        """The scores of one server, None when it goes down meanwhile."""
        attempt = 0
        while member.ready:
            attempt += 1
            try:
                with member.request():
                    return await member.within(member.client.score(token_ids), deadline, _scoring(token_ids))
            except InfrastructureFault as fault:
                await self._note(member, fault)
                if member.ready and (attempt >= ATTEMPTS or isinstance(fault, DeadlineExceeded)):
                    raise
        return None

    async def _pick(self, session: str | None, avoid: set[str], ends: float, deadline: float) -> EngineMember:
        """The server for a request; waits for a restart while none is ready."""
        while (chosen := self._router.choose(self.members, session, avoid)) is None:
            if self.members and all(member.failure for member in self.members):
                raise InfrastructureFault("engine", "crash", str(self.members[0].failure))
            try:
                async with asyncio.timeout(ends - time.monotonic()):
                    await self.change()
            except TimeoutError as error:
                names = ", ".join(member.name for member in self.members)
                raise DeadlineExceeded("engine", deadline, f"waiting for one of {names} to serve") from error
        return chosen

    def _all_in(self, tried: set[str]) -> bool:
        return all(member.name in tried for member in self.members)

    async def _note(self, member: EngineMember, fault: InfrastructureFault) -> None:
        """Count a failed request. A failing server that this program started is killed immediately, so that a new one
        starts soon."""
        self.faults[f"{fault.component}:{fault.cause}"] += 1
        log.warning("engine request failed", engine=member.name, cause=fault.cause, message=str(fault)[:300])
        if member.server is None or not member.ready or isinstance(fault, DeadlineExceeded):
            return
        # vLLM's API server outlives its engine core by seconds, and would use up every attempt.
        life = member.restarts
        healthy = await member.client.healthy(seconds=HEALTH_SECONDS)
        if not healthy and member.ready and member.restarts == life:  # still the server that failed
            member.take_out_of_service(f"unhealthy after {fault.cause}")


def _scoring(token_ids: Sequence[int]) -> str:
    return f"scoring {len(token_ids):,} tokens"
