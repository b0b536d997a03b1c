"""The plan of one validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tau2_lightning.config.environment import ValidDatasetConfig
from tau2_lightning.environment import TaskRef


@dataclass(frozen=True)
class ValidationPlan:
    """One validation: which tasks, how many trials of each.

    ``sampling`` holds the fields of completion requests that differ from ``gconfig``: ``temperature``, ``top_p``.
    After ``timeout`` seconds it ends with the episodes that are finished; None: it ends when all are.
    ``others`` are the plans of the run's other domains; they belong to the same validation.
    """

    domain: str
    split: str
    tasks: tuple[TaskRef, ...]
    num_trials: int
    sampling: Mapping[str, float] = field(default_factory=dict)
    timeout: float | None = None
    others: tuple[ValidationPlan, ...] = ()

    @property
    def parts(self) -> tuple[ValidationPlan, ...]:
        """The plans of all domains, this one first."""
        return (self, *self.others)


def sampling_of(valid: ValidDatasetConfig) -> dict[str, float]:
    """The fields of completion requests that the section ``valid_dataset`` sets."""
    chosen = {"temperature": 0.0 if valid.greedy else valid.temperature, "top_p": valid.top_p}
    return {name: value for name, value in chosen.items() if value is not None}
