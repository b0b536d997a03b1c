"""Export of a session, one row per leaf of its tree: trajectories for the trainer, JSON for outside programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from tau2_lightning.algorithm.rewards import turn_returns
from tau2_lightning.algorithm.shaping import RewardShaping
from tau2_lightning.rollout.chat.message import Message
from tau2_lightning.trajectory import Trajectory, Turn

from .tree import Node, Session

# Of a turn, what is only in the record of the run (`rollout_files`).
_OF_THE_RECORD = {"message", "began_s", "engine_s", "queue_s"}


def export(session: Session) -> tuple[Trajectory, ...]:
    """The rows of ``session``, main line first, over the segments of its tree.

    A turn's reward is its own, plus the session's final reward on the last turn of each row. It is added nowhere else.
    Turns that two rows share belong to the first: the second repeats their tokens as context, without a turn. Turns
    sampled from an altered distribution keep their mark, and have no log-probs of the policy and no versions. Penalties
    and discounts are not applied here, and which tokens are trained is decided by `trajectory.trained_masks`.
    """
    owned: set[Node] = set()
    return tuple(_row(session, leaf, branch, owned) for branch, leaf in enumerate(session.leaves()))


def _row(session: Session, leaf: Node, branch: int, owned: set[Node]) -> Trajectory:
    length = leaf.sampled.end
    logprobs = np.zeros(length, np.float32)
    versions = np.full(length, -1, np.int32)
    turns = []
    messages: list[Message] = []
    for node in leaf.path():
        messages += (*node.messages, node.reply)
        if node in owned:
            continue
        owned.add(node)
        start, end = node.sampled.start, node.sampled.end
        final = (session.final_reward or 0.0) if node is leaf else 0.0
        if node.altered is None:
            logprobs[start:end] = node.logprobs
            versions[start:end] = node.versions
        turns.append(
            Turn(
                start=start,
                end=end,
                reward=(node.reward or 0.0) + final,
                invalid_format=node.invalid_format,
                finish_reason=node.finish_reason,
                altered=node.altered,
                final_reward=final,
                message=len(messages) - 1,
                began_s=node.began_s,
                engine_s=node.engine_s,
                queue_s=node.queue_s,
            )
        )
    return Trajectory(leaf.sampled, logprobs, versions, tuple(turns), branch, tuple(messages))


def outside_rows(
    rows: Iterable[Trajectory], *, invalid_format_penalty: float, turn_discount: float
) -> list[dict[str, Any]]:
    """Rows for outside programs, as JSON-able data with numpy arrays.

    ``loss_mask`` is the row's own. A turn's ``reward`` is less ``invalid_format_penalty`` where its tool call could
    not be read, and its ``discounted_return`` is R_i = r_i + turn_discount * R_{i+1}; both are derived as in training
    (`Turn.penalty`, `algorithm.rewards.turn_returns`). Log-probs of minus infinity become -1e9, which JSON can hold.
    """
    shaping = RewardShaping(invalid_format_penalty=invalid_format_penalty, turn_discount=turn_discount)
    return [
        {
            "branch": row.branch,
            "token_ids": row.token_ids,
            "loss_mask": row.loss_mask,
            "logprobs": np.nan_to_num(row.logprobs, neginf=-1e9),
            "versions": row.versions,
            "turns": _turns(row, shaping),
        }
        for row in rows
    ]


def _turns(row: Trajectory, shaping: RewardShaping) -> list[dict[str, Any]]:
    rewards = torch.tensor([turn.reward - turn.penalty(shaping) for turn in row.turns], dtype=torch.float64)
    returns = turn_returns(rewards, shaping.turn_discount)
    return [
        {**_shown(turn), "reward": reward, "discounted_return": value}
        for turn, reward, value in zip(row.turns, rewards.tolist(), returns.tolist(), strict=True)
    ]


def _shown(turn: Turn) -> dict[str, Any]:
    return {name: value for name, value in asdict(turn).items() if name not in _OF_THE_RECORD}
