"""Wall-clock seconds of a run by phase, for the report and for the progress line."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: The oldest are forgotten where nobody takes them.
MOST_SPANS = 10_000


class PhaseClock:
    """Adds up wall-clock seconds by phase name. Phases nest; a nested phase's time counts in the inner one only.

    ``entered`` is called at the beginning of each phase; what it raises ends that phase. ``spans`` are (phase, begin,
    end) in Unix time, a nested phase apart from the one around it, until somebody takes them.
    """

    def __init__(self) -> None:
        self.entered: Callable[[], None] | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        self.spans: deque[tuple[str, float, float]] = deque(maxlen=MOST_SPANS)
        self._offset = time.time() - time.perf_counter()
        self._stack: list[tuple[str, float]] = []  # with the time at which each began
        self._since = self._idle_since = time.perf_counter()

    @property
    def current(self) -> str:
        """The innermost current phase, or ``idle``."""
        return self.now[0]

    @property
    def now(self) -> tuple[str, float, float]:
        """The innermost current phase, the seconds since it began, and the time (``time.perf_counter``) at which it
        did, which tells one from the next of its name. For any thread."""
        name, began = next(reversed(tuple(self._stack)), ("idle", self._idle_since))
        return name, time.perf_counter() - began, began

    def __str__(self) -> str:
        name, seconds, _ = self.now
        return f"{name}, for {seconds:.0f} s"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block under ``name``."""
        self._turn(name)
        try:
            if self.entered is not None:
                self.entered()
            yield
        finally:
            self._charge()
            self._stack.pop()
            self._idle_since = self._since

    def _turn(self, name: str) -> None:
        self._charge()
        self._stack.append((name, self._since))

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            name = self._stack[-1][0]
            self.seconds[name] += now - self._since
            self.spans.append((name, self._offset + self._since, self._offset + now))
        self._since = now
