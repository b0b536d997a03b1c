"""The record of an episode that a batch or a validation did not wait for."""

from __future__ import annotations

from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout.episode.runner import EpisodeRequest


def unfinished(request: EpisodeRequest, cause: str, why: str) -> FailedAttempt:
    """What is kept of the episode ``request``, which is excluded as ``cause``; ``why`` is a sentence for people."""
    return FailedAttempt(
        request.purpose,
        request.task_id,
        getattr(request.task, "domain", ""),
        request.group_id,
        request.sample,
        0,
        cause,
        why,
        final=True,
    )
