"""The parts of a validation, which are played at the same time, and what comes of each."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.episode.attempts import FailedAttempt
from tau2_lightning.rollout.episode.runner import EpisodeRequest
from tau2_lightning.trajectory import Rollout

from .concurrently import within
from .late import unfinished
from .progress import Progress

log = structlog.get_logger(__name__)

#: An episode that is played: its result, or the fault for which it is excluded.
Playing: TypeAlias = "asyncio.Task[Rollout | InfrastructureFault]"

#: The cause of exclusion of episodes that were not finished when the time of a validation was over.
LATE = "validation:timeout"


@dataclass(frozen=True)
class Part:
    """What is validated on one domain: every task of ``tasks``, ``num_trials`` times.

    ``sampling`` holds fields of completion requests that replace the workflow's own. ``timeout`` seconds after the
    start of the whole validation, the finished episodes are kept and the others excluded as ``validation:timeout``.
    None: all episodes have to be finished at the deadline of the whole validation.
    """

    tasks: Sequence[Any]
    num_trials: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None

    @property
    def domain(self) -> str:
        """The domain of the tasks; empty where there are none, or where they have none."""
        return next((getattr(task, "domain", "") for task in self.tasks), "")

    @property
    def episodes(self) -> int:
        """The number of planned episodes."""
        return len(self.tasks) * self.num_trials


@dataclass(frozen=True)
class PlayedPart:
    """The finished rollouts of a part in task order, and the exclusions by cause.

    ``failure`` is the error that ended the part, with the rollouts that were finished by then; None when it has ended
    well.
    """

    rollouts: list[Rollout]
    excluded: Counter[str]
    failure: Exception | None = None

    def result(self) -> tuple[list[Rollout], Counter[str]]:
        """Rollouts and exclusions; raises the failure, if there is one."""
        if self.failure is not None:
            raise self.failure
        return self.rollouts, self.excluded


def in_turns(counts: Sequence[int]) -> list[int]:
    """The order in which the episodes of parts start: for each of them, the number of its part.

    ``counts`` are the episodes of each part. Every part has had the same share of its episodes at every moment, so that
    a time limit cuts off all parts alike, and not the last one altogether.
    """
    places = sorted(((place + 0.5) / count, part) for part, count in enumerate(counts) for place in range(count))
    return [part for _, part in places]


async def end_of(
    part: Part,
    asked: Sequence[EpisodeRequest],
    playing: Sequence[Playing],
    progress: Progress,
    deadline: float,
    late: MutableSequence[FailedAttempt],
) -> PlayedPart:
    """Wait for the episodes that are ``playing`` for the requests ``asked``, as long as ``part`` has time.

    ``late`` gets the record of each episode that ``part.timeout`` cuts off. An error ends the other episodes of this
    part only.
    """
    failure: Exception | None = None
    seconds = deadline if part.timeout is None else part.timeout
    try:
        results = await within(playing, seconds)
        if part.timeout is None and None in results:
            raise DeadlineExceeded("collector", seconds, progress.describe())
    except Exception as error:  # noqa: BLE001 - raised once the other domains have ended
        log.warning("the validation of a domain has failed", domain=part.domain, error=str(error))
        failure, results = error, list(map(_result_of, playing))
    excluded = Counter(result.name for result in results if isinstance(result, InfrastructureFault))
    cut_off = [request for request, result in zip(asked, results, strict=True) if result is None]
    if cut_off and failure is None:
        excluded[LATE] += len(cut_off)
        why = f"it was not finished when the {seconds:g} s of the validation were over"
        late.extend(unfinished(request, LATE, why) for request in cut_off)
    return PlayedPart([result for result in results if isinstance(result, Rollout)], excluded, failure)


def _result_of(task: Playing) -> Rollout | InfrastructureFault | None:
    return None if not task.done() or task.cancelled() or task.exception() else task.result()
