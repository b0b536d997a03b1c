"""The plan of one validation."""

from __future__ import annotations

from dataclasses import dataclass

from tau2_lightning.environment import TaskRef


@dataclass(frozen=True)
class ValidationPlan:
    """One validation: which tasks, how many trials of each; sampled, or ``greedy`` with the likeliest tokens.

    ``others`` are the plans of the run's other domains; they belong to the same validation.
    """

    domain: str
    split: str
    tasks: tuple[TaskRef, ...]
    num_trials: int
    greedy: bool = False
    others: tuple[ValidationPlan, ...] = ()

    @property
    def parts(self) -> tuple[ValidationPlan, ...]:
        """The plans of all domains, this one first."""
        return (self, *self.others)
