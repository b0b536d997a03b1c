"""What an agent workflow returns, in all its forms."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tau2_lightning.errors import WorkflowFault
from tau2_lightning.trajectory import EpisodeOutcome

_KEYS = frozenset({"reward", "turn_rewards", "outcome"})


@dataclass(frozen=True)
class Result:
    """``rewards``: pairs of a turn (completion id or index; None: the whole episode) and its reward. The rewards are as
    the workflow gave them; the session checks each one that it takes."""

    rewards: tuple[tuple[int | str | None, Any], ...]
    outcome: EpisodeOutcome | None = None


def read_result(given: Any, completions: Collection[str]) -> Result:
    """``given`` as a Result; ``completions`` are the ids of the session's completions.

    Forms: one number; ``{"reward": ..., "turn_rewards": {...}, "outcome": ...}``, where one of the first two may be
    left out and other keys are ignored; ``{completion id: reward}``. Raises WorkflowFault: ``bad_reward`` for a mapping
    without any reward and for completion ids beside ``reward``, ``bad_outcome`` for what is no EpisodeOutcome.
    """
    if not isinstance(given, Mapping):
        return Result(((None, given),))
    if not given:
        raise WorkflowFault("bad_reward", "the workflow returned an empty mapping")
    if not _KEYS.intersection(given):
        return Result(tuple(given.items()))
    for key in given:
        if key in completions:
            raise WorkflowFault("bad_reward", f"{key!r} stands beside other keys: put it into 'turn_rewards'")
    turns = given.get("turn_rewards") or {}
    if not isinstance(turns, Mapping):
        raise WorkflowFault("bad_reward", f"turn_rewards is no mapping but {type(turns).__name__}")
    rewards = [*turns.items()]
    if "reward" in given:
        rewards.append((None, given["reward"]))
    if not rewards:
        raise WorkflowFault("bad_reward", "the workflow returned no reward")
    outcome = given.get("outcome")
    if outcome is not None and not (isinstance(outcome, EpisodeOutcome) and math.isfinite(outcome.reward)):
        raise WorkflowFault("bad_outcome", f"no EpisodeOutcome with a finite reward: {str(outcome)[:80]!r}")
    return Result(tuple(rewards), outcome)
