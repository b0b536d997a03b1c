"""How the user of a played episode behaved: its faults, and what becomes of an episode with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tau2_lightning.errors import UserMisbehaved

from .settings import EnvironmentSettings, TaskRef
from .tasks import get_task
from .user_faults import Scenario, UserFault, find_user_faults

#: The key of a user message's ``raw_data`` that holds the faults of this turn.
FAULTS = "user_faults"


@lru_cache(maxsize=4096)
def scenario_of(ref: TaskRef, guidelines: str) -> Scenario:
    """What the user of ``ref`` plays by, prepared once."""
    return Scenario.of(get_task(ref), guidelines=guidelines)


def user_faults(
    ref: TaskRef, settings: EnvironmentSettings, user: Any, messages: Sequence[Any]
) -> tuple[UserFault, ...]:
    """The faults of tau2's simulated ``user`` in an episode's ``messages`` (tau2's own objects). Only a model has any:
    a script says what is written."""
    if settings.user.kind != "llm":
        return ()
    scenario = scenario_of(ref, user.global_simulation_guidelines)
    return find_user_faults(scenario, [_as_data(message) for message in messages])


def _as_data(message: Any) -> dict[str, Any]:
    """The fields of tau2's message that the rules read; dumping the whole model takes longer than the rules."""
    calls = getattr(message, "tool_calls", None)
    return {
        "role": message.role,
        "content": message.content,
        "tool_calls": [{"name": call.name} for call in calls] if calls else None,
        "requestor": getattr(message, "requestor", None),
    }


def note(faults: Sequence[UserFault], messages: Sequence[Any]) -> None:
    """Write each fault beside its turn, in the message's ``raw_data``, so that the results file shows it there."""
    for fault in faults:
        message = messages[fault.turn]
        noted = dict(message.raw_data or {})
        noted[FAULTS] = [*noted.get(FAULTS, ()), {"kind": fault.kind, "evidence": fault.evidence}]
        message.raw_data = noted


def count_by_kind(faults: Sequence[UserFault]) -> dict[str, int]:
    """How many faults there are of each kind."""
    return dict(sorted(Counter(fault.kind for fault in faults).items()))


def refuse(faults: Sequence[UserFault], settings: EnvironmentSettings) -> None:
    """Raise UserMisbehaved for the first fault where ``settings.user_faults`` says that such an episode is no score."""
    if faults and settings.user_faults != "keep":
        first = faults[0]
        raise UserMisbehaved(
            first.kind, f"message {first.turn}: {first.evidence}", again=settings.user_faults == "retry"
        )
