"""Attempts at an episode that ended with a fault, kept so that they can be looked at."""

from __future__ import annotations

from dataclasses import dataclass

from tau2_lightning.trajectory import Trajectory

#: The oldest are forgotten where nobody takes them.
MOST_KEPT = 1024


@dataclass(frozen=True, eq=False)
class FailedAttempt:
    """An attempt at an episode that ended with a fault. It has no reward.

    ``cause`` is ``component:cause``, ``message`` the fault in words. ``purpose`` says what was played: ``train`` or
    ``validate``. ``attempt`` counts from 0, and ``final`` is False where another one followed. ``trajectories`` is what
    the session held by then; ``began`` is a Unix time.
    """

    purpose: str
    task_id: str
    domain: str
    group_id: str
    sample: int
    attempt: int
    cause: str
    message: str
    final: bool
    began: float = 0.0
    seconds: float = 0.0
    trajectories: tuple[Trajectory, ...] = ()
