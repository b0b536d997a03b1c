"""From groups of rollouts to rows whose labels carry advantages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tau2_lightning.trajectory import Group, Rollout, Trajectory

from .rows import Row, common_prefix

Mask = npt.NDArray[np.bool_]


class Crediting(Protocol):
    """What an algorithm must offer to make a batch: see ``PolicyGradient.credit``."""

    @property
    def invalid_format_penalty(self) -> float: ...

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


def trainable(rollout: Rollout) -> tuple[list[Mask], dict[str, int]]:
    """Which tokens of each of the rollout's rows are trained, and what was left out and why.

    Left out: turns sampled from an altered distribution (a grammar, or e.g. top_p), tokens whose behaviour
    log-prob is not a finite number, a row's first token (nothing predicts it), and tokens that an earlier row of
    the same episode holds in a common prefix, so that no sampled token is trained twice.
    """
    masks: list[Mask] = []
    dropped = {"altered_tokens": 0, "altered_turns": 0, "nonfinite_tokens": 0, "duplicate_tokens": 0}
    for i, row in enumerate(rollout.trajectories):
        mask = row.loss_mask.copy()
        mask[:1] = False
        shared = 0
        for earlier in rollout.trajectories[:i]:
            n = common_prefix(earlier.token_ids, row.token_ids)
            same = earlier.loss_mask[:n] & mask[:n] & (earlier.versions[:n] == row.versions[:n])
            shared = max(shared, n if same.any() else 0)
        dropped["duplicate_tokens"] += int(mask[:shared].sum())
        mask[:shared] = False
        for turn in row.turns:
            if turn.altered is not None:  # the session may have left them out of its loss mask already
                dropped["altered_turns"] += 1
                dropped["altered_tokens"] += turn.end - turn.start
                mask[turn.start : turn.end] = False
        bad = mask & ~np.isfinite(row.logprobs)
        dropped["nonfinite_tokens"] += int(bad.sum())
        masks.append(mask & ~bad)
    return masks, dropped


def episode_reward(rollout: Rollout, penalty: float) -> float:
    """The episode's reward less ``penalty`` for each of its malformed turns: what the algorithm shapes further."""
    return rollout.reward - penalty * _malformed(rollout)


def _malformed(rollout: Rollout) -> int:
    return sum(turn.invalid_format for row in rollout.trajectories for turn in row.turns)


def teaches(group: Group, algorithm: Crediting) -> bool:
    """Whether training on ``group`` can move a weight under ``algorithm`` (see ``PolicyGradient.teaches``)."""
    penalty = algorithm.invalid_format_penalty
    return algorithm.teaches(
        [episode_reward(rollout, penalty) for rollout in group.rollouts],
        [rollout.sampled_tokens for rollout in group.rollouts],
    )


def _label_aligned(values: npt.NDArray, empty: float) -> npt.NDArray:
    """Move what concerns token t + 1 to index t; the last position predicts nothing."""
    shifted = np.full_like(values, empty)
    shifted[:-1] = values[1:]
    return shifted


def _row(row_id: int, trajectory: Trajectory, mask: Mask, advantage: float, turn_advantages: Sequence[float]) -> Row:
    per_token = np.full(len(trajectory), advantage, np.float32)
    for turn, value in zip(trajectory.turns, turn_advantages, strict=True):
        per_token[turn.start : turn.end] = value
    return Row(
        row_id=row_id,
        leaf=-1,
        loss_mask=_label_aligned(mask, False),
        behaviour_logprobs=_label_aligned(np.where(mask, trajectory.logprobs, 0).astype(np.float32), 0),
        advantages=_label_aligned(np.where(mask, per_token, 0).astype(np.float32), 0),
        versions=_label_aligned(np.where(mask, trajectory.versions, -1).astype(np.int32), -1),
    )


def credited_rows(
    groups: Sequence[Group], algorithm: Crediting, version: int
) -> tuple[list[npt.NDArray[np.int32]], list[Row], dict[str, float]]:
    """Token rows, their label data and statistics of the groups, with advantages by ``algorithm.credit``.

    An episode's reward is ``rollout.reward`` less ``invalid_format_penalty`` for each of its malformed turns; the
    turns' own rewards are part of it and are credited from their turn backwards.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    group_ids = [g for g, group in enumerate(groups) for _ in group.rollouts]
    penalty = algorithm.invalid_format_penalty
    lines = [(e, row) for e, rollout in enumerate(rollouts) for row in rollout.trajectories]
    credit = algorithm.credit(
        [[turn.reward - penalty * turn.invalid_format for turn in row.turns] for _, row in lines],
        [e for e, _ in lines],
        [episode_reward(rollout, penalty) for rollout in rollouts],
        group_ids,
        [rollout.sampled_tokens for rollout in rollouts],
    )
    kept = [trainable(rollout) for rollout in rollouts]
    masks = [mask for masks, _ in kept for mask in masks]
    tokens: list[npt.NDArray[np.int32]] = []
    rows: list[Row] = []
    for k, ((e, trajectory), mask) in enumerate(zip(lines, masks, strict=True)):
        if mask.any():
            tokens.append(trajectory.token_ids.astype(np.int32, copy=False))
            rows.append(_row(k, trajectory, mask, float(credit.advantages[e]), credit.turn_advantages[k].tolist()))
    statistics = _statistics(groups, rollouts, credit.rewards.tolist(), credit.advantages.tolist(), version)
    statistics["invalid_format_turns"] = float(sum(map(_malformed, rollouts)))
    if groups:
        statistics["zero_variance_groups"] = float(np.mean([not teaches(group, algorithm) for group in groups]))
    statistics["rows_without_tokens"] = float(len(lines) - len(rows))
    for _, dropped in kept:
        for name, n in dropped.items():
            statistics[name] = statistics.get(name, 0.0) + n
    return tokens, rows, statistics


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
