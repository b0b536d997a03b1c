"""One episode from task to Rollout: open a session, play a workflow, retry infrastructure faults, export rows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import structlog

from tau2_lightning.environment.whereabouts import WORKFLOW, Whereabouts, at
from tau2_lightning.errors import (
    DeadlineExceeded,
    InfrastructureFault,
    SessionError,
    Tau2LightningError,
    UserMisbehaved,
    WorkflowFault,
)
from tau2_lightning.rollout.deadlines import pause_before_retry
from tau2_lightning.trajectory import Rollout, Trajectory

from .attempts import MOST_KEPT, FailedAttempt
from .blame import innermost, lost_connection, workflow_fault, wrapped
from .leash import played_within
from .result import read_result
from .workflow import Access, AgentWorkflow, takes_client

log = structlog.get_logger(__name__)


class SessionHandle(Protocol):
    """The interface of a session that the runner uses."""

    @property
    def session_id(self) -> str: ...

    @property
    def api_key(self) -> str: ...

    @property
    def completions(self) -> Sequence[str]: ...

    @property
    def total_reward(self) -> float: ...


class Sessions(Protocol):
    """The interface of the session store that the runner uses."""

    def start(
        self,
        *,
        task_id: str,
        group_id: str,
        metadata: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None,
        fixed_sampling: Mapping[str, Any],
    ) -> SessionHandle: ...

    def fault(self, session_id: str, *, raised: bool = False) -> InfrastructureFault | None: ...

    def set_reward(self, session_id: str, reward: Any, *, turn: int | str | None = None) -> None: ...

    def export(self, session_id: str) -> tuple[Trajectory, ...]: ...

    def end(self, session_id: str) -> None: ...

    def abort(self, session_id: str) -> None: ...


@dataclass(frozen=True)
class EpisodeRequest:
    """One sample of one task: ``task`` is a TaskRef (or another input of the workflow), ``sample`` its index in the
    group.

    ``sampling`` are fields of completion requests that replace those of the agent, whichever client it uses, e.g.
    ``{"temperature": 0}``. ``purpose`` says what is played: ``train`` or ``validate``.
    """

    task: Any
    task_id: str
    group_id: str
    sample: int
    seed: int
    tools: Sequence[Mapping[str, Any]] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    purpose: str = ""


class EpisodeRunner:
    """Runs episodes; counts faults by ``component:cause`` in ``faults``, and keeps the attempts that ended so in
    ``failed`` until somebody takes them (``keep_failed=False``: none). ``playing`` are those that run.

    ``timeout``: seconds of one attempt, without waits for a model of the environment that limits its rate; an attempt
    that does not end even when it is cancelled is left behind (`leash.played_within`). ``own``: the
    workflow is a part of this program, so an exception that is no InfrastructureFault is a defect of it, and is raised
    as it is. A workflow of the user's may raise anything: that is the fault of one episode. ``data_of`` gives further
    keys of ``data``, what the workflow is told about a task.
    """

    def __init__(
        self,
        workflow: AgentWorkflow,
        sessions: Sessions,
        access: Access,
        *,
        timeout: float,
        retries: int,
        own: bool = False,
        data_of: Callable[[Any], Mapping[str, Any]] = lambda task: {},
        keep_failed: bool = True,
    ) -> None:
        self.workflow, self.sessions, self.access = workflow, sessions, access
        self.timeout, self.retries = timeout, retries
        self.faults: Counter[str] = Counter()
        self.failed: deque[FailedAttempt] = deque(maxlen=MOST_KEPT if keep_failed else 0)
        self.playing: set[Whereabouts] = set()
        self._own, self._data_of = own, data_of
        self._gives_client = takes_client(workflow)

    async def run(self, request: EpisodeRequest) -> Rollout:
        """Play until an episode finishes. Raises the InfrastructureFault of the last attempt, or one that would come
        again.

        A retry repeats the episode with its seed, except that the user is drawn anew after its own fault, and where the
        agent had no turn: a user that has ended the dialogue at once would end it again.
        """
        here = Whereabouts(request.task_id, request.sample)
        here.begin()
        self.playing.add(here)
        try:
            return await self._until_it_ends(request)
        finally:
            self.playing.discard(here)

    async def _until_it_ends(self, request: EpisodeRequest) -> Rollout:
        user_draw = 0
        for attempt in range(self.retries + 1):
            at(WORKFLOW)
            try:
                return await self._attempt(request, user_draw, attempt)
            except InfrastructureFault as fault:
                self.faults[fault.name] += 1
                log.warning("episode failed", task=request.task_id, attempt=attempt, fault=str(fault))
                if self._gives_up(attempt, fault):
                    raise
                user_draw += isinstance(fault, UserMisbehaved) or fault.name == "session:no_turn"
                await asyncio.sleep(pause_before_retry(attempt))
        raise AssertionError("unreachable")

    def _gives_up(self, attempt: int, fault: InfrastructureFault) -> bool:
        return attempt == self.retries or not fault.again

    async def _attempt(self, request: EpisodeRequest, user_draw: int, attempt: int) -> Rollout:
        started, began = time.monotonic(), time.time()
        session = self._open(request)
        try:
            given = await self._play(request, session, user_draw)
            if (fault := self.sessions.fault(session.session_id)) is not None:
                raise fault
            result = read_result(given, session.completions)
            try:
                for turn, reward in result.rewards:
                    self.sessions.set_reward(session.session_id, reward, turn=turn)
                rows = self.sessions.export(session.session_id)
            except SessionError as error:
                raise WorkflowFault(error.code, str(error)) from error
            self.sessions.end(session.session_id)
        except BaseException as error:
            if isinstance(error, InfrastructureFault) and self.failed.maxlen:
                self._keep(request, session, error, attempt, began)
            self.sessions.abort(session.session_id)
            raise
        return Rollout(
            task_id=request.task_id,
            group_id=request.group_id,
            sample=request.sample,
            reward=session.total_reward,
            trajectories=rows,
            outcome=result.outcome,
            seconds=time.monotonic() - started,
            began=began,
        )

    def _keep(
        self, request: EpisodeRequest, session: SessionHandle, fault: InfrastructureFault, attempt: int, began: float
    ) -> None:
        try:
            rows = self.sessions.export(session.session_id)
        except SessionError:  # the session is gone, which may be the fault itself
            rows = ()
        self.failed.append(
            FailedAttempt(
                request.purpose,
                request.task_id,
                getattr(request.task, "domain", ""),
                request.group_id,
                request.sample,
                attempt,
                fault.name,
                str(fault),
                self._gives_up(attempt, fault),
                began,
                time.time() - began,
                rows,
            )
        )

    def _open(self, request: EpisodeRequest) -> SessionHandle:
        try:
            return self.sessions.start(
                task_id=request.task_id,
                group_id=request.group_id,
                metadata={"sample": request.sample},
                tools=request.tools,
                fixed_sampling=request.sampling,
            )
        except SessionError as error:
            raise InfrastructureFault("session", error.code, str(error)) from error

    async def _play(self, request: EpisodeRequest, session: SessionHandle, user_draw: int) -> Any:
        """What the workflow returns. Raises DeadlineExceeded, and as ``_blame`` does."""
        data = {
            "task": request.task,
            "task_id": request.task_id,
            "seed": request.seed,
            "sampling": request.sampling,
            **self._data_of(request.task),
            **({"user_draw": user_draw} if user_draw else {}),
        }
        playing = self.workflow.run(
            data,
            base_url=self.access.base_url,
            api_key=session.api_key,
            http_client=self.access.http_client,
            **({"client": self.access.client(session.api_key)} if self._gives_client else {}),
        )
        late, given, error = await played_within(playing, self.timeout)
        if late:
            raise DeadlineExceeded("episode", self.timeout, f"playing task {request.task_id}") from error
        if error is not None:
            self._blame(error, session)
        return given

    def _blame(self, error: BaseException, session: SessionHandle) -> NoReturn:
        """Raise what ended the episode: an error of this program, also one that the workflow has wrapped; a failed
        request that made the workflow raise; or else a WorkflowFault."""
        cause = innermost(error)
        if isinstance(cause, Tau2LightningError):
            raise cause
        if self._own:
            raise error
        failed = wrapped(cause) or self.sessions.fault(session.session_id, raised=True)
        failed = failed or lost_connection(cause, self.access.base_url)
        raise failed or workflow_fault(cause) from error
