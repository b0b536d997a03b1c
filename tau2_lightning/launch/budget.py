"""How often something may fail in a stretch of time before the run gives up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable


class Budget:
    """``count`` failures in any ``seconds``; one more is too many. ``clock`` is in seconds and never goes back."""

    def __init__(self, count: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.count, self.seconds, self._clock = count, seconds, clock
        self._spent: deque[float] = deque()

    def spend(self) -> bool:
        """Count a failure now; returns whether it is still within the budget."""
        self._spent.append(self._clock())
        return self.spent <= self.count

    @property
    def spent(self) -> int:
        """Failures within the last ``seconds``."""
        oldest = self._clock() - self.seconds
        while self._spent and self._spent[0] < oldest:
            self._spent.popleft()
        return len(self._spent)

    def __str__(self) -> str:
        return f"{self.spent} of {self.count} in {self.seconds / 60:g} min"
