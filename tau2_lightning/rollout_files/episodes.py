"""From what was played to kept episodes: advantages, penalties, times and messages beside every token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.rows import Row
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.trajectory import Group, Penalties, Rollout, Trajectory

from .dialogue import merged
from .played import Played, PlayedBatch, PlayedValidation
from .schema import KeptEpisode


def kept_episodes(played: Played, algorithm: Penalties) -> list[KeptEpisode]:
    """The episodes of a batch or of a validation. In a batch, trained ones come first, in the order of its rows."""
    if isinstance(played, PlayedBatch):
        return list(_of_batch(played, algorithm))
    return list(_of_validation(played, algorithm))


def trained_rows(statuses: Sequence[str], rows: Sequence[int]) -> list[tuple[int, int]]:
    """(episode, row in it) by the number that a batch gives its rows (`Row.row_id`): those of the trained episodes.

    ``statuses`` and ``rows``, the number of rows, are of a file's episodes in order.
    """
    trained = [episode for episode, status in enumerate(statuses) if status == "trained"]
    return [(episode, row) for episode in trained for row in range(rows[episode])]


def _of_batch(played: PlayedBatch, algorithm: Penalties) -> Iterator[KeptEpisode]:
    collection, rows = played.collection, _rows_by_id(played.batch)
    status = "untrained" if played.batch is None else "trained"
    parts = [
        (status, collection.groups),
        ("filtered", collection.dropped),
        ("lost", collection.lost_groups),
        ("stale", collection.stale_groups),
    ]
    number = row_id = 0
    for status, groups in parts:
        for group, rollout in _rollouts(groups):
            lines = range(row_id, row_id + len(rollout.trajectories)) if status == "trained" else ()
            row_id += len(lines)
            yield _episode(
                rollout,
                [rows.get(line) for line in lines],
                algorithm,
                kind="train",
                step=played.step,
                episode=number,
                status=status,
                cause={"filtered": "no signal", "lost": "group lost", "stale": "too old"}.get(status, ""),
                domain=group.domain,
                split=played.splits.get(group.domain, ""),
                version=played.version,
                stamp=played.stamps.get(group.domain, {}),
            )
            number += 1
    for place, attempt in enumerate(played.failed, number):
        split = played.splits.get(attempt.domain, "")
        yield _failed(attempt, "train", played.step, place, split, played.version, played.stamps.get(attempt.domain))


def _of_validation(played: PlayedValidation, algorithm: Penalties) -> Iterator[KeptEpisode]:
    for number, rollout in enumerate(played.rollouts):
        yield _episode(
            rollout,
            [],
            algorithm,
            kind="validate",
            step=played.step,
            episode=number,
            status="validated",
            cause="",
            domain=played.domain,
            split=played.split,
            version=played.step,
            stamp=played.stamp,
            number=played.number,
        )
    for number, attempt in enumerate(played.failed, len(played.rollouts)):
        yield _failed(attempt, "validate", played.step, number, played.split, played.step, played.stamp, played.number)


def _rollouts(groups: Sequence[Group]) -> Iterator[tuple[Group, Rollout]]:
    return ((group, rollout) for group in groups for rollout in group.rollouts)


def _rows_by_id(batch: Batch | None) -> dict[int, Row]:
    return {} if batch is None else {row.row_id: row for row in batch.rows}


def _episode(
    rollout: Rollout,
    rows: Sequence[Row | None],
    algorithm: Penalties,
    *,
    kind: str,
    step: int,
    episode: int,
    status: str,
    cause: str,
    domain: str,
    split: str,
    version: int,
    stamp: Mapping[str, Any],
    number: int = 0,
) -> KeptEpisode:
    lines, outcome = rollout.trajectories, rollout.outcome
    arrays = _arrays(lines, rows)
    turns = _turns(lines, rows, algorithm, outcome.turn_seconds if outcome is not None else ())
    trained, advantages = arrays["trained"], arrays["advantages"]
    world = outcome.simulation.get("messages") or () if outcome is not None else ()
    oldest = rollout.oldest_version
    told: dict[str, Any] = {}
    if outcome is not None:
        told = {
            "tau2_reward": outcome.reward,
            "termination": outcome.termination_reason,
            "user": outcome.user,
            "transferred": outcome.transferred,
            "transfer_expected": outcome.transfer_expected,
            "tool_calls": outcome.tool_calls,
            "tool_errors": outcome.tool_errors,
            "reward_parts": dict(outcome.reward_breakdown),
            "mistakes": dict(outcome.mistakes),
            "user_faults": dict(outcome.user_faults),
            "opening_s": sum(outcome.turn_seconds[0]) if outcome.turn_seconds else 0.0,
        }
    return KeptEpisode(
        kind=kind,
        step=step,
        episode=episode,
        status=status,
        cause=cause,
        domain=domain,
        split=split,
        task_id=rollout.task_id,
        group=rollout.group_id,
        sample=rollout.sample,
        number=number,
        reward=rollout.reward,
        penalty=sum(turn["penalty"] for turn in turns),
        advantage=float(advantages[trained].mean()) if trained.any() else 0.0,
        n_turns=len(turns),
        sampled_tokens=rollout.sampled_tokens,
        trained_tokens=int(trained.sum()),
        version=version,
        oldest_version=oldest,
        staleness=version - oldest if oldest >= 0 else 0,
        began=rollout.began,
        seconds=rollout.seconds,
        queued_s=rollout.queued_s,
        turns=turns,
        messages=_messages(lines, world, rollout.began),
        stamp=stamp,
        **told,
        **arrays,
    )


def _failed(
    attempt: FailedAttempt,
    kind: str,
    step: int,
    number: int,
    split: str,
    version: int,
    stamp: Mapping[str, Any] | None,
    validation: int = 0,
) -> KeptEpisode:
    lines = attempt.trajectories
    turns = _turns(lines, [], None, ())
    return KeptEpisode(
        kind=kind,
        step=step,
        episode=number,
        status="failed",
        domain=attempt.domain,
        split=split,
        task_id=attempt.task_id,
        group=attempt.group_id,
        sample=attempt.sample,
        number=validation,
        cause=attempt.cause,
        message=attempt.message,
        attempt=attempt.attempt,
        final=attempt.final,
        n_turns=len(turns),
        sampled_tokens=sum(row.sampled_tokens for row in lines),
        version=version,
        began=attempt.began,
        seconds=attempt.seconds,
        turns=turns,
        messages=_messages(lines, (), attempt.began),
        stamp=stamp or {},
        **_arrays(lines, []),
    )


def _arrays(lines: Sequence[Trajectory], rows: Sequence[Row | None]) -> dict[str, Any]:
    """The rows' tokens one behind the other. A batch aligns values to labels: index t is about token t + 1."""
    total = sum(len(line) for line in lines)
    trained, advantages = np.zeros(total, np.bool_), np.zeros(total, np.float32)
    at = 0
    for line, row in zip(lines, [*rows, *[None] * (len(lines) - len(rows))], strict=True):
        if row is not None:
            trained[at + 1 : at + len(line)] = row.loss_mask[:-1]
            advantages[at + 1 : at + len(line)] = row.advantages[:-1]
        at += len(line)
    return {
        "row_lengths": np.array([len(line) for line in lines], np.int32),
        "tokens": _joined([line.token_ids for line in lines], np.int32),
        "logprobs": _joined([line.logprobs for line in lines], np.float32),
        "versions": _joined([line.versions for line in lines], np.int32),
        "trained": trained,
        "advantages": advantages,
    }


def _joined(parts: Sequence[Any], dtype: type[np.generic]) -> Any:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)


def _turns(
    lines: Sequence[Trajectory],
    rows: Sequence[Row | None],
    algorithm: Penalties | None,
    seconds: Sequence[tuple[float, float]],
) -> list[dict[str, Any]]:
    """The turns of all rows. What user and tools took is known of one line of tau2's episode: the main one."""
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        row = rows[number] if number < len(rows) else None
        for at, turn in enumerate(line.turns):
            user, tools = seconds[at + 1] if number == 0 and at + 1 < len(seconds) else (0.0, 0.0)
            advantage = float(row.advantages[turn.start - 1]) if row is not None and 0 < turn.start < turn.end else 0.0
            found.append(
                {
                    "row": number,
                    "start": turn.start,
                    "end": turn.end,
                    "reward": turn.reward,
                    "penalty": 0.0 if algorithm is None else turn.penalty(algorithm),
                    "advantage": advantage,
                    "invalid_format": turn.invalid_format,
                    "finish_reason": turn.finish_reason,
                    "altered": turn.altered,
                    "began_s": round(turn.began_s, 4),
                    "engine_s": round(turn.engine_s, 4),
                    "queue_s": round(turn.queue_s, 4),
                    "user_s": round(user, 4),
                    "tool_s": round(tools, 4),
                }
            )
    return found


def _messages(lines: Sequence[Trajectory], world: Sequence[Any], began: float) -> list[dict[str, Any]]:
    if not lines:
        return merged((), {}, world, began)
    main = lines[0]
    turns = {turn.message: number for number, turn in enumerate(main.turns) if turn.message >= 0}
    return merged(main.messages, turns, world, began)
