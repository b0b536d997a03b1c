"""One episode from task to Rollout: open a session, play a workflow, retry infrastructure faults, export rows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from tau2_lightning.environment.patience import charged_to
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault, UserMisbehaved
from tau2_lightning.trajectory import EpisodeOutcome, Rollout, Trajectory

from .workflow import Access, AgentWorkflow, takes_client

log = structlog.get_logger(__name__)


class SessionHandle(Protocol):
    """The interface of a session that the runner uses."""

    @property
    def session_id(self) -> str: ...

    @property
    def api_key(self) -> str: ...


class Sessions(Protocol):
    """The interface of the session store that the runner uses."""

    def start(
        self,
        *,
        task_id: str,
        group_id: str,
        metadata: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> SessionHandle: ...

    def set_reward(self, session_id: str, reward: float, *, turn: int | str | None = None) -> None: ...

    def export(self, session_id: str) -> tuple[Trajectory, ...]: ...

    def end(self, session_id: str) -> None: ...

    def abort(self, session_id: str) -> None: ...


@dataclass(frozen=True)
class EpisodeRequest:
    """One sample of one task: ``task`` is a TaskRef (or another input of the workflow), ``sample`` its index in the
    group.

    ``sampling`` are fields of completion requests that replace the workflow's own, e.g. ``{"temperature": 0}``.
    """

    task: Any
    task_id: str
    group_id: str
    sample: int
    seed: int
    tools: Sequence[Mapping[str, Any]] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


class EpisodeRunner:
    """Runs episodes; counts faults by ``component:cause`` in ``faults``. ``timeout``: seconds of one attempt,
    without waits for a model of the environment that limits its rate."""

    def __init__(
        self,
        workflow: AgentWorkflow,
        sessions: Sessions,
        access: Access,
        *,
        timeout: float,
        retries: int,
    ) -> None:
        self.workflow, self.sessions, self.access = workflow, sessions, access
        self.timeout, self.retries = timeout, retries
        self.faults: Counter[str] = Counter()
        self._gives_client = takes_client(workflow)

    async def run(self, request: EpisodeRequest) -> Rollout:
        """Play until an episode finishes. Raises the last InfrastructureFault when every attempt failed.

        A retry repeats the episode with its seed, except that the user is drawn anew after its own fault.
        """
        user_draw = 0
        for attempt in range(self.retries + 1):
            try:
                return await self._attempt(request, user_draw)
            except InfrastructureFault as fault:
                self.faults[f"{fault.component}:{fault.cause}"] += 1
                log.warning("episode failed", task=request.task_id, attempt=attempt, fault=str(fault))
                if attempt == self.retries or not fault.again:
                    raise
                user_draw += isinstance(fault, UserMisbehaved)
                await asyncio.sleep(min(2.0**attempt * 0.5, 10.0))
        raise AssertionError("unreachable")

    async def _attempt(self, request: EpisodeRequest, user_draw: int) -> Rollout:
        started = time.monotonic()
        session = self.sessions.start(
            task_id=request.task_id, group_id=request.group_id, metadata={"sample": request.sample}, tools=request.tools
        )
        try:
            async with asyncio.timeout(self.timeout) as limit:
                with charged_to(limit):
                    result = await self.workflow.run(
                        {
                            "task": request.task,
                            "task_id": request.task_id,
                            "seed": request.seed,
                            "sampling": request.sampling,
                            **({"user_draw": user_draw} if user_draw else {}),
                        },
                        base_url=self.access.base_url,
                        api_key=session.api_key,
                        http_client=self.access.http_client,
                        **({"client": self.access.client(session.api_key)} if self._gives_client else {}),
                    )
            reward, outcome, turn_rewards = _read_result(result)
            for turn, value in turn_rewards.items():
                self.sessions.set_reward(session.session_id, value, turn=turn)
            self.sessions.set_reward(session.session_id, reward)
            rows = self.sessions.export(session.session_id)
            self.sessions.end(session.session_id)
        except TimeoutError as error:
            self.sessions.abort(session.session_id)
            if not limit.expired():
                raise  # the workflow's own
            raise DeadlineExceeded("episode", self.timeout, f"playing task {request.task_id}") from error
        except BaseException:
            self.sessions.abort(session.session_id)
            raise
        return Rollout(
            task_id=request.task_id,
            group_id=request.group_id,
            sample=request.sample,
            reward=reward + sum(turn_rewards.values()),
            trajectories=rows,
            outcome=outcome,
            seconds=time.monotonic() - started,
        )


def _read_result(
    result: float | Mapping[str, Any],
) -> tuple[float, EpisodeOutcome | None, Mapping[str, float]]:
    if isinstance(result, Mapping):
        return float(result["reward"]), result.get("outcome"), result.get("turn_rewards") or {}
    return float(result), None, {}
