"""A session's tree -> trajectories: one token-exact row per leaf, every sampled token trained at most once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tau2_lightning.trajectory import Trajectory, Turn

from .tree import Node, Session


def discounted_returns(rewards: Sequence[float], discount: float) -> list[float]:
    """R_i = r_i + discount * R_{i+1} over the turns of one row (AReaL's turn discount)."""
    out: list[float] = []
    following = 0.0
    for reward in reversed(rewards):
        following = reward + discount * following
        out.append(following)
    return out[::-1]


def export(session: Session, *, invalid_format_penalty: float, turn_discount: float) -> tuple[Trajectory, ...]:
    """The rows of ``session``, main line first.

    A turn's reward is its own, plus the session's final reward on the last turn of each row, minus
    ``invalid_format_penalty`` when its tool call could not be read. Turns that two rows share belong to the first:
    the second repeats their tokens as context, unmasked and without a turn. Turns sampled from an altered
    distribution keep their mark and are never in the loss mask.
    """
    owned: set[int] = set()
    rows = []
    for branch, leaf in enumerate(session.leaves()):
        rows.append(_row(session, leaf, branch, owned, invalid_format_penalty, turn_discount))
    return tuple(rows)


def _row(session: Session, leaf: Node, branch: int, owned: set[int], penalty: float, discount: float) -> Trajectory:
    path = leaf.path()
    length = sum(len(node.prompt) + len(node.generation.token_ids) for node in path)
    token_ids = np.zeros(length, np.int32)
    mask = np.zeros(length, np.bool_)
    logprobs = np.zeros(length, np.float32)
    versions = np.full(length, -1, np.int32)
    rewards = [(node.reward or 0.0) - penalty * node.invalid_format for node in path]
    rewards[-1] += session.final_reward or 0.0
    returns = discounted_returns(rewards, discount)
    turns = []
    at = 0
    for node, reward, value in zip(path, rewards, returns, strict=True):
        token_ids[at : at + len(node.prompt)] = node.prompt
        at += len(node.prompt)
        start, at = at, at + len(node.generation.token_ids)
        token_ids[start:at] = node.generation.token_ids
        if id(node) in owned:
            continue
        owned.add(id(node))
        if node.altered is None:
            mask[start:at] = True
            logprobs[start:at] = node.generation.logprobs
            versions[start:at] = node.generation.versions
        turns.append(
            Turn(
                start=start,
                end=at,
                reward=reward,
                discounted_return=value,
                invalid_format=node.invalid_format,
                finish_reason=node.generation.finish_reason,
                altered=node.altered,
            )
        )
    return Trajectory(token_ids, mask, logprobs, versions, tuple(turns), branch)
