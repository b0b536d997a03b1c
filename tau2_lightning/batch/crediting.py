"""Credit assignment: groups of rollouts become rows whose labels carry advantages.

Every value has one source: the trained mask comes from `trajectory.trained_masks`, penalties from `Turn.penalty`, the
total reward from ``Rollout.reward``, and the discounted return from ``algorithm.credit``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tau2_lightning.trajectory import Group, Mask, Penalties, Rollout, Trajectory, trained_masks

from .rows import Row
from .truncation import without_truncated


class Crediting(Penalties, Protocol):
    """The interface of an algorithm that is used to make a batch: see ``PolicyGradient.credit``."""

    @property
    def mask_truncated(self) -> str: ...
    @property
    def finishes_late(self) -> bool: ...

    def finish(self, tokens: Mapping[str, Tensor], version: int) -> dict[str, Tensor]: ...

    def teaches(self, episode_rewards: Sequence[float], lengths: Sequence[int]) -> bool: ...

    def credit(
        self,
        turn_rewards: Sequence[Sequence[float]],
        episodes: Sequence[int],
        episode_rewards: Sequence[float],
        group_ids: Sequence[int],
        lengths: Sequence[int],
    ) -> Credited: ...


class Credited(Protocol):
    """Rewards and advantages [N] per episode, turn advantages [n] per row."""

    @property
    def rewards(self) -> Tensor: ...
    @property
    def advantages(self) -> Tensor: ...
    @property
    def turn_advantages(self) -> Sequence[Tensor]: ...


def teaches(group: Group, algorithm: Crediting) -> bool:
    """Whether training on ``group`` can change a weight under ``algorithm`` (see ``PolicyGradient.teaches``)."""
    return _has_tokens(group, algorithm.mask_truncated) and algorithm.teaches(
        [_penalised(rollout, algorithm) for rollout in group.rollouts],
        [rollout.sampled_tokens for rollout in group.rollouts],
    )


def _penalised(rollout: Rollout, algorithm: Crediting) -> float:
    """The episode's total: its reward less the penalties of all turns of all its rows."""
    return rollout.reward - sum(turn.penalty(algorithm) for row in rollout.trajectories for turn in row.turns)


def _has_tokens(group: Group, mask_truncated: str) -> bool:
    """Whether ``mask_truncated`` leaves a token of the group to train."""
    if mask_truncated == "none":
        return True
    trained = [(rollout, [row.loss_mask for row in rollout.trajectories]) for rollout in group.rollouts]
    return any(mask.any() for one, masks in trained for mask in without_truncated(one, masks, mask_truncated))


def _label_aligned(values: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
    """Move the values of token t + 1 to index t; the last position predicts nothing."""
    shifted = np.full_like(values, empty)
    shifted[:-1] = values[1:]
    return shifted


def _row(
    row_id: int,
    trajectory: Trajectory,
    mask: Mask,
    turn_advantages: Sequence[float],
    *,
    group: int,
    episode: int,
    share: float,
) -> Row:
    per_token = np.zeros(len(trajectory), np.float32)
    for turn, value in zip(trajectory.turns, turn_advantages, strict=True):
        per_token[turn.start : turn.end] = value
    return Row(
        row_id=row_id,
        leaf=trajectory.leaf,
        loss_mask=_label_aligned(mask, False),
        behaviour_logprobs=_label_aligned(np.where(mask, trajectory.logprobs, 0).astype(np.float32), 0),
        advantages=_label_aligned(np.where(mask, per_token, 0).astype(np.float32), 0),
        versions=_label_aligned(np.where(mask, trajectory.versions, -1).astype(np.int32), -1),
        group=group,
        episode=episode,
        share=share,
    )


def credited_rows(groups: Sequence[Group], algorithm: Crediting, version: int) -> tuple[list[Row], dict[str, float]]:
    """Rows of the groups, with advantages by ``algorithm.credit``, and statistics. Rows end in their trajectories' own
    segments.

    An episode's total is ``rollout.reward`` less the penalties of its turns; baselines are of totals. A turn's own
    reward and penalty are credited to it and to the turns before it in its row; they are no part of the outcome that
    the episode's other rows are credited with.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    group_ids = [g for g, group in enumerate(groups) for _ in group.rollouts]
    lines = [(e, row) for e, rollout in enumerate(rollouts) for row in rollout.trajectories]
    credit = algorithm.credit(
        [[turn.own_reward - turn.penalty(algorithm) for turn in row.turns] for _, row in lines],
        [e for e, _ in lines],
        [_penalised(rollout, algorithm) for rollout in rollouts],
        group_ids,
        [rollout.sampled_tokens for rollout in rollouts],
    )
    decided = [trained_masks(rollout.trajectories) for rollout in rollouts]
    left = [
        without_truncated(rollout, masks, algorithm.mask_truncated)
        for rollout, (masks, _) in zip(rollouts, decided, strict=True)
    ]
    trained = [sum(int(mask.sum()) for mask in masks) for masks in left]
    rows = [
        _row(
            k,
            trajectory,
            mask,
            credit.turn_advantages[k].tolist(),
            group=group_ids[e],
            episode=e,
            share=float(mask.sum()) / trained[e],
        )
        for k, ((e, trajectory), mask) in enumerate(zip(lines, [mask for masks in left for mask in masks], strict=True))
        if mask.any()
    ]
    statistics = _statistics(groups, rollouts, credit.rewards.tolist(), credit.advantages.tolist(), version)
    statistics["invalid_format_turns"] = float(sum(rollout.invalid_turns for rollout in rollouts))
    if groups:
        statistics["zero_variance_groups"] = float(np.mean([not teaches(group, algorithm) for group in groups]))
    trainable = sum(int(mask.sum()) for masks, _ in decided for mask in masks)
    statistics["truncated_tokens"] = float(trainable - sum(trained))
    statistics["rows_without_tokens"] = float(len(lines) - len(rows))
    for _, left_out in decided:
        for name, n in left_out.items():
            statistics[name] = statistics.get(name, 0.0) + n
    return rows, statistics


def _statistics(
    groups: Sequence[Group], rollouts: Sequence[Rollout], shaped: list[float], advantages: list[float], version: int
) -> dict[str, float]:
    if not rollouts:
        return {"episodes": 0.0, "groups": float(len(groups))}
    sampled = [float(r.sampled_tokens) for r in rollouts]
    series = {
        "reward": [r.reward for r in rollouts],
        "shaped_reward": shaped,
        "advantage": advantages,
        "sampled_tokens": sampled,
        "tokens": [float(sum(len(row) for row in r.trajectories)) for r in rollouts],
        "turns": [float(sum(len(row.turns) for row in r.trajectories)) for r in rollouts],
        "rows_per_episode": [float(len(r.trajectories)) for r in rollouts],
        "episode_seconds": [r.seconds for r in rollouts],
        "staleness": [float(version - r.oldest_version) for r in rollouts if r.oldest_version >= 0] or [0.0],
    }
    out = {"episodes": float(len(rollouts)), "groups": float(len(groups))}
    for name, values in series.items():
        out[f"{name}/mean"] = float(np.mean(values))
        out[f"{name}/min"], out[f"{name}/max"] = float(min(values)), float(max(values))
    out["reward/std"] = float(np.std(series["reward"]))
    turns = [turn for r in rollouts for row in r.trajectories for turn in row.turns]
    out["truncated_turns"] = float(np.mean([t.finish_reason == "length" for t in turns])) if turns else 0.0
    return out
