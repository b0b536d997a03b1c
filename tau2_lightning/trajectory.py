"""Values that flow from the proxy to the trainer: turns, token-exact trajectories, rollouts and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .segments import Segment, Tokens, shared_tokens

Mask = npt.NDArray[np.bool_]


class Penalties(Protocol):
    """What is asked of an algorithm's settings of rewards (`algorithm.shaping.RewardShaping`)."""

    def turn_penalty(self, tokens: int, *, truncated: bool, malformed: bool) -> float: ...


@dataclass(frozen=True)
class Turn:
    """One assistant turn: the half-open span ``[start, end)`` of sampled tokens inside its trajectory.

    ``reward`` is the turn's own reward; the export of a session adds the session's final reward to the last turn of
    each row, and says in ``final_reward`` how much of ``reward`` that is.
    ``altered`` names what changed the distribution that the turn was sampled from (a grammar, or sampling parameters
    other than the run's); such turns are never trained on.
    ``message`` is its place among its trajectory's ``messages`` (-1: not known). Its request came ``began_s`` seconds
    after the session began and took the engine ``engine_s`` seconds, ``queue_s`` of them in the queue of the engine.
    """

    start: int
    end: int
    reward: float = 0.0
    invalid_format: bool = False
    finish_reason: str = "stop"
    altered: str | None = None
    final_reward: float = 0.0
    message: int = field(default=-1, compare=False)
    began_s: float = field(default=0.0, compare=False)
    engine_s: float = field(default=0.0, compare=False)
    queue_s: float = field(default=0.0, compare=False)

    @property
    def own_reward(self) -> float:
        """``reward`` without the session's final reward."""
        return self.reward - self.final_reward

    def penalty(self, penalties: Penalties) -> float:
        """What the turn loses of its reward under ``penalties``, 0 or more."""
        truncated = self.finish_reason == "length"
        return penalties.turn_penalty(self.end - self.start, truncated=truncated, malformed=self.invalid_format)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One token-exact row of a session: what the engine saw and sampled, never re-tokenised.

    ``leaf`` is the last segment of the row; rows of one session share the segments before they part. ``logprobs``
    [T] float32 are the behaviour policy's log-probabilities (nats, after temperature) of the tokens of its unaltered
    turns, 0 elsewhere; ``versions`` [T] int32 the weight version that sampled each of them, -1 elsewhere. ``turns``
    are the row's own: a turn that an earlier row of the session has is context here. ``branch`` is 0 for the session's
    main line. ``messages`` are the OpenAI messages that the row was made from, replies included, where they are known.
    Raises ValueError when lengths differ or a turn is outside the row.
    """

    leaf: Segment
    logprobs: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int32]
    turns: tuple[Turn, ...] = ()
    branch: int = 0
    messages: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        lengths = {"tokens": self.leaf.end, "logprobs": len(self.logprobs), "versions": len(self.versions)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"trajectory arrays differ in length: {lengths}")
        for turn in self.turns:
            if not 0 <= turn.start <= turn.end <= len(self):
                raise ValueError(f"turn {turn} is outside a row of {len(self)} tokens")

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int] | Tokens,
        logprobs: npt.NDArray[np.float32],
        versions: npt.NDArray[np.int32],
        turns: tuple[Turn, ...] = (),
        branch: int = 0,
    ) -> Trajectory:
        """A row of one segment, from flat tokens [T]."""
        return cls(Segment.of(token_ids), logprobs, versions, turns, branch)

    def __len__(self) -> int:
        return self.leaf.end

    @property
    def token_ids(self) -> Tokens:
        """[T] int32: the row's segments one after the other, copied at every call (batches read the segments)."""
        return self.leaf.flat()

    @cached_property
    def loss_mask(self) -> Mask:
        """[T] bool: the tokens that may be trained on, by this row alone (see `trained_masks`).

        These are the tokens of the row's own turns, except altered turns, tokens whose log-prob is not a finite
        number, and the row's first token, which nothing predicts.
        """
        mask = self._tokens_of_turns(altered=False)
        mask &= np.isfinite(self.logprobs)
        mask[:1] = False
        return mask

    @property
    def sampled_tokens(self) -> int:
        """Tokens of the row's own turns, trained or not."""
        return int((self._tokens_of_turns(altered=False) | self._tokens_of_turns(altered=True)).sum())

    @property
    def oldest_version(self) -> int:
        """Weight version of the oldest token of the loss mask; -1 when that is empty."""
        sampled = self.versions[self.loss_mask]
        return int(sampled.min()) if sampled.size else -1

    def segment_of(self, turn: Turn) -> Segment | None:
        """The segment that is exactly ``turn``; None where the row was not built from its turns."""
        segment: Segment | None = self.leaf
        while segment is not None and segment.start > turn.start:
            segment = segment.parent
        if segment is None or segment.parent is None:  # a row from flat tokens is a single segment
            return None
        return segment if (segment.start, segment.end) == (turn.start, turn.end) else None

    def left_out(self) -> dict[str, int]:
        """Sampled tokens that ``loss_mask`` leaves out, by cause, and the number of altered turns."""
        altered = [turn for turn in self.turns if turn.altered is not None]
        nonfinite = self._tokens_of_turns(altered=False)[1:] & ~np.isfinite(self.logprobs[1:])
        return {
            "altered_tokens": sum(turn.end - turn.start for turn in altered),
            "altered_turns": len(altered),
            "nonfinite_tokens": int(nonfinite.sum()),
        }

    def _tokens_of_turns(self, *, altered: bool) -> Mask:
        mask = np.zeros(len(self), np.bool_)
        for turn in self.turns:
            if (turn.altered is not None) == altered:
                mask[turn.start : turn.end] = True
        return mask


def trained_masks(rows: Sequence[Trajectory]) -> tuple[list[Mask], dict[str, int]]:
    """Which tokens of an episode's rows are trained, [T] bool each, and how many were left out, by cause.

    The result is each row's ``loss_mask`` without the tokens that an earlier row of the episode trains already, in a
    turn that is the same (see `_same_turn`): no sampled token is trained twice. Answers to one prompt that merely begin
    with the same tokens are different turns, and each is trained whole.
    """
    masks: list[Mask] = []
    left_out = {"altered_tokens": 0, "altered_turns": 0, "nonfinite_tokens": 0, "duplicate_tokens": 0}
    for i, row in enumerate(rows):
        mask = row.loss_mask.copy()
        for earlier, trained in zip(rows[:i], masks, strict=True):
            for turn in row.turns:
                if _same_turn(earlier, row, turn):
                    mask[turn.start : turn.end] &= ~trained[turn.start : turn.end]
        left_out["duplicate_tokens"] += int((row.loss_mask & ~mask).sum())
        masks.append(mask)
        for cause, n in row.left_out().items():
            left_out[cause] += n
    return masks, left_out


def _same_turn(earlier: Trajectory, row: Trajectory, turn: Turn) -> bool:
    """Whether ``turn`` of ``row`` is a turn that ``earlier`` has too: sampled once, and found in both.

    Where both rows hold it as a segment of its own, as the rows of a session do, the segment decides. Otherwise it is a
    copy when all tokens up to its end are equal, and the weight versions and log-probs of the turn bit for bit.
    """
    span = slice(turn.start, turn.end)
    if not any((other.start, other.end) == (turn.start, turn.end) for other in earlier.turns):
        return False
    mine, theirs = row.segment_of(turn), earlier.segment_of(turn)
    if mine is not None and theirs is not None:
        return mine is theirs
    return (
        earlier.versions[span].tobytes() == row.versions[span].tobytes()
        and earlier.logprobs[span].tobytes() == row.logprobs[span].tobytes()
        and shared_tokens(earlier.leaf, row.leaf) >= turn.end
    )


@dataclass(frozen=True)
class EpisodeOutcome:
    """tau2's result of a finished episode. ``simulation`` is tau2's own SimulationRun as JSON-able data.

    ``mistakes`` counts the agent's own errors by kind (``malformed_arguments``, ``unknown_tool``, ``no_tool_call``,
    ...), ``user_faults`` the simulated user's (`environment.user_faults.KINDS`). ``transfer_expected`` is True where
    the task's gold solution transfers to a human. ``turn_seconds`` are (seconds of the user, of the tools) before the
    agent's first turn, and after each of its turns.
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
    user_faults: Mapping[str, int] = field(default_factory=dict)
    turn_seconds: tuple[tuple[float, float], ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Rollout:
    """One episode: its outcome and the rows of its session (one, unless the client rewrote history).

    ``reward`` is the episode's final reward plus its turns' own rewards; ``seconds`` its wall-clock time since
    ``began`` (Unix time, 0: not known), before which it had waited ``queued_s`` seconds for a place. Raises
    ValueError for a reward that is not finite: it would poison the advantages of its group.
    """

    task_id: str
    group_id: str
    sample: int
    reward: float
    trajectories: tuple[Trajectory, ...]
    outcome: EpisodeOutcome | None = None
    seconds: float = 0.0
    began: float = 0.0
    queued_s: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"the reward of task {self.task_id} is {self.reward}")

    @property
    def invalid_turns(self) -> int:
        """Turns whose tool call could not be read."""
        return sum(turn.invalid_format for row in self.trajectories for turn in row.turns)

    @property
    def oldest_version(self) -> int:
        versions = [row.oldest_version for row in self.trajectories if row.loss_mask.any()]
        return min(versions, default=-1)

    @property
    def sampled_tokens(self) -> int:
        return sum(row.sampled_tokens for row in self.trajectories)


@dataclass(frozen=True)
class Group:
    """The ``n_samples`` rollouts of one task of one ``domain`` (empty where only the sender of the sessions knows it);
    advantages are taken over exactly these.

    ``excluded`` counts episodes lost to infrastructure faults, by ``component:cause``: they are not rollouts and
    carry no reward.
    """

    group_id: str
    task_id: str
    rollouts: tuple[Rollout, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)
    domain: str = ""

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(rollout.reward for rollout in self.rollouts)

    @property
    def has_signal(self) -> bool:
        """False when every reward is the same: such a group has zero advantage everywhere."""
        return len(self.rollouts) > 1 and max(self.rewards) - min(self.rewards) > 1e-8
