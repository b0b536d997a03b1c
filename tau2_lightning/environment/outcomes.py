"""The `EpisodeOutcome` of a finished episode, and its training reward."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tau2_lightning.trajectory import EpisodeOutcome

from . import tau2_api as api
from .judge import judge_stamp
from .knowledge import PER_TASK
from .scoring import fast_reward_info
from .settings import EnvironmentSettings, TaskRef
from .tasks import TRANSFER
from .user_conduct import count_by_kind, note, refuse, user_faults


@dataclass
class Record:
    """Data of an episode that tau2's trajectory does not have.

    ``turns`` counts the agent's replies, ``actions`` names its tool calls, ``mistakes`` counts its mistakes by kind.
    ``aborted`` is a cause of the end that tau2 does not know. ``started_at`` is tau2's time stamp of the beginning,
    ``clock`` the same moment in seconds of ``time.perf_counter``.
    ``seconds`` adds up what the user and the tools took, by the number of replies before.
    """

    turns: int = 0
    actions: list[str] = field(default_factory=list)
    mistakes: Counter[str] = field(default_factory=Counter)
    aborted: str | None = None
    started_at: str = field(default_factory=api.get_now)
    clock: float = field(default_factory=time.perf_counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)

    @contextmanager
    def spent(self, *, by_user: bool) -> Iterator[None]:
        """Count the time inside as the user's or as the tools'."""
        began = time.perf_counter()
        try:
            yield
        finally:
            of_turn = self.seconds.setdefault(self.turns, [0.0, 0.0])
            of_turn[0 if by_user else 1] += time.perf_counter() - began

    def turn_seconds(self) -> tuple[tuple[float, float], ...]:
        """See `EpisodeOutcome`."""
        pairs = (self.seconds.get(turn, (0.0, 0.0)) for turn in range(self.turns + 1))
        return tuple((user, tools) for user, tools in pairs)


def score(
    orchestrator: Any,
    record: Record,
    ref: TaskRef,
    settings: EnvironmentSettings,
    *,
    seed: int,
    user: str,
    verdict: str | None = None,
) -> EpisodeOutcome:
    """The outcome of the episode that ``orchestrator`` has played to its end. Call it once per episode.

    ``verdict`` is the judge's (`judge.verdict_on`), where the task needs one; its stamp is in the reward info. Raises
    UserMisbehaved where the settings do not keep episodes with a fault of the user.
    """
    task, reason = orchestrator.task, orchestrator.termination_reason
    run = _simulation(orchestrator, record, seed)
    faults = user_faults(ref, settings, orchestrator.user, run.messages)
    refuse(faults, settings)
    note(faults, run.messages)
    if settings.retrieval.config == PER_TASK:
        run.policy = orchestrator.environment.get_policy()
    info = fast_reward_info(run, task, orchestrator.environment, settings, verdict)
    if verdict is not None:
        info.info = {**(info.info or {}), "judge": judge_stamp(settings)}
    run.reward_info = info
    results = [m for m in run.messages if isinstance(m, api.ToolMessage) and m.requestor == "assistant"]
    return EpisodeOutcome(
        task_id=task.id,
        reward=float(info.reward),
        termination_reason=record.aborted or reason.value,
        turns=record.turns,
        tool_calls=len(record.actions),
        tool_errors=sum(message.error for message in results),
        transferred=TRANSFER in record.actions,
        transfer_expected=ref.transfer_expected,
        user=user,
        mistakes={kind: count for kind, count in sorted(record.mistakes.items()) if count},
        reward_breakdown={kind.value: value for kind, value in (info.reward_breakdown or {}).items()},
        actions=tuple(record.actions),
        simulation=run.model_dump(mode="json"),
        user_faults=count_by_kind(faults),
        turn_seconds=record.turn_seconds(),
    )


def _simulation(orchestrator: Any, record: Record, seed: int) -> Any:
    """tau2's SimulationRun of the episode, without a reward."""
    # In the order of events; tau2 sorts by wall clock, which a clock step would scramble.
    messages = orchestrator.trajectory
    for index, message in enumerate(messages):
        message.turn_idx = index
    return api.SimulationRun(
        id=str(uuid.uuid4()),
        task_id=orchestrator.task.id,
        start_time=record.started_at,
        end_time=api.get_now(),
        duration=time.perf_counter() - record.clock,
        termination_reason=orchestrator.termination_reason,
        agent_cost=0.0,
        user_cost=sum(message.cost or 0.0 for message in messages if message.role == "user"),
        messages=messages,
        seed=seed,
    )


def training_reward(outcome: EpisodeOutcome, settings: EnvironmentSettings) -> float:
    """The training reward: tau2's reward, less ``transfer_penalty`` for a transfer that the task does not ask for."""
    needless = outcome.transferred and not outcome.transfer_expected
    return outcome.reward - (settings.transfer_penalty if needless else 0.0)
