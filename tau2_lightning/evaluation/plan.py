"""The plan of one validation."""

from __future__ import annotations

from dataclasses import dataclass

from tau2_lightning.environment import TaskRef


@dataclass(frozen=True)
class ValidationPlan:
    """One validation: which tasks, how many trials of each; sampled, or ``greedy`` with the likeliest tokens."""

    domain: str
    split: str
    tasks: tuple[TaskRef, ...]
    num_trials: int
    greedy: bool = False
