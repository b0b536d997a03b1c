"""Where each running episode is, and since when: for the reports of episodes that do not end."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

GENERATE, USER, ENVIRONMENT, WORKFLOW = "generate", "user", "environment", "workflow"

_mine: ContextVar[Whereabouts | None] = ContextVar("where this episode is", default=None)


@dataclass(eq=False)
class Whereabouts:
    """An episode that is being played: sample ``sample`` of ``task``, in ``stage`` since ``stage_since``.

    Times are of ``time.monotonic``. Only the thread that plays it writes; any thread may read.
    """

    task: str
    sample: int
    stage: str = WORKFLOW
    since: float = field(default_factory=time.monotonic)
    stage_since: float = field(default_factory=time.monotonic)

    def begin(self) -> None:
        """This is the episode of everything that the calling task does from now on."""
        _mine.set(self)

    def __str__(self) -> str:
        now = time.monotonic()
        return (
            f"task {self.task}, sample {self.sample}: {now - self.since:.0f} s, "
            f"in {self.stage} for {now - self.stage_since:.0f} s"
        )


def at(stage: str) -> None:
    """The episode of the calling task is in ``stage`` now. Does nothing outside an episode."""
    mine = _mine.get()
    if mine is not None:
        mine.stage, mine.stage_since = stage, time.monotonic()
