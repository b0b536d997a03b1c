"""Values that flow from the proxy to the trainer: turns, token-exact trajectories, rollouts and groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Turn:
    """One assistant turn: the half-open span ``[start, end)`` of sampled tokens inside its trajectory.

    ``reward`` is the turn's own reward (the episode's final reward sits on the last turn). ``altered`` says what made
    the turn's distribution another one than the policy's at the run's temperature: a grammar's name, or sampling
    parameters; such turns are never trained on. ``discounted_return`` is R_i = r_i + turn_discount * R_{i+1} over the
    turns of its row.
    """

    start: int
    end: int
    reward: float = 0.0
    invalid_format: bool = False
    finish_reason: str = "stop"
    altered: str | None = None
    discounted_return: float = 0.0


@dataclass(frozen=True)
class Trajectory:
    """One token-exact row of a session: what the engine saw and sampled, never re-tokenised.

    Arrays share one length T. ``token_ids`` int32; ``loss_mask`` bool, True where the policy sampled a token that may
    be trained on; ``logprobs`` float32, the behaviour policy's log-probability (nats, after temperature) of each of
    these, 0 elsewhere; ``versions`` int32, the weight version that sampled each of them, -1 elsewhere. ``branch`` is 0
    for the session's main line. Raises ValueError when lengths differ or a turn lies outside the row.
    """

    token_ids: npt.NDArray[np.int32]
    loss_mask: npt.NDArray[np.bool_]
    logprobs: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    turns: tuple[Turn, ...] = ()
    branch: int = 0

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("token_ids", "loss_mask", "logprobs", "versions")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"trajectory arrays differ in length: {lengths}")
        for turn in self.turns:
            if not 0 <= turn.start <= turn.end <= len(self.token_ids):
                raise ValueError(f"turn {turn} lies outside a row of {len(self.token_ids)} tokens")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the loss mask and of altered turns."""
        sampled = self.loss_mask.copy()
        for turn in self.turns:
            if turn.altered is not None:
                sampled[turn.start : turn.end] = True
        return int(sampled.sum())

    @property
    def oldest_version(self) -> int:
        """Weight version of the oldest token of the loss mask; -1 when that is empty."""
        sampled = self.versions[self.loss_mask]
        return int(sampled.min()) if sampled.size else -1


@dataclass(frozen=True)
class EpisodeOutcome:
    """What tau2 says of a finished episode. ``simulation`` is tau2's own SimulationRun as JSON-able data.

    ``mistakes`` counts the agent's own errors by kind (``malformed_arguments``, ``unknown_tool``, ``no_tool_call``,
    ...). ``transfer_expected`` tells whether the task's gold solution transfers to a human.
    """

    task_id: str
    reward: float
    termination_reason: str
    turns: int
    tool_calls: int
    tool_errors: int
    transferred: bool
    transfer_expected: bool
    user: str
    mistakes: Mapping[str, int] = field(default_factory=dict)
    reward_breakdown: Mapping[str, float] = field(default_factory=dict)
    actions: tuple[str, ...] = ()
    simulation: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Rollout:
    """One episode: its outcome and the rows its session left (one, unless the client rewrote history)."""

    task_id: str
    group_id: str
    sample: int
    reward: float
    trajectories: tuple[Trajectory, ...]
    outcome: EpisodeOutcome | None = None
    seconds: float = 0.0

    @property
    def oldest_version(self) -> int:
        versions = [row.oldest_version for row in self.trajectories if row.loss_mask.any()]
        return min(versions, default=-1)

    @property
    def sampled_tokens(self) -> int:
        return sum(row.sampled_tokens for row in self.trajectories)


@dataclass(frozen=True)
class Group:
    """The ``n_samples`` rollouts of one task; advantages are taken over exactly these.

    ``excluded`` counts episodes lost to infrastructure faults, by ``component:cause``: they are not rollouts and
    carry no reward.
    """

    group_id: str
    task_id: str
    rollouts: tuple[Rollout, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(rollout.reward for rollout in self.rollouts)

    @property
    def has_signal(self) -> bool:
        """False when every reward is the same: such a group has zero advantage everywhere."""
        return len(self.rollouts) > 1 and max(self.rewards) - min(self.rewards) > 1e-8
