"""Tokens of episodes and turns that a limit cut off, left out of training (``algorithm.mask_truncated``)."""

from __future__ import annotations

from collections.abc import Sequence

from tau2_lightning.trajectory import Mask, Rollout

#: Reasons for which an episode ended before its agent or its user ended it.
LIMITS = frozenset({"max_steps", "context_length_exceeded", "context_window_exceeded"})


def without_truncated(rollout: Rollout, masks: Sequence[Mask], level: str) -> list[Mask]:
    """The trained masks [T] of an episode's rows without what was cut off.

    ``turn`` leaves out turns that ended by their length (``finish_reason`` length); ``episode`` the whole episode, if
    it has such a turn or ended for one of `LIMITS`; ``none`` nothing. An agent that returns no outcome has no reason
    of the end, so only its turns count.
    """
    if level == "none":
        return list(masks)
    if level == "episode":
        return [mask & False if _cut_off(rollout) else mask for mask in masks]
    left = [mask.copy() for mask in masks]
    for row, mask in zip(rollout.trajectories, left, strict=True):
        for turn in row.turns:
            if turn.finish_reason == "length":
                mask[turn.start : turn.end] = False
    return left


def _cut_off(rollout: Rollout) -> bool:
    ended = rollout.outcome is not None and rollout.outcome.termination_reason in LIMITS
    return ended or any(turn.finish_reason == "length" for row in rollout.trajectories for turn in row.turns)
