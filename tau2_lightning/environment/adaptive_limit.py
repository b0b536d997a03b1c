"""How many requests may be open at one endpoint: a limit that follows what the endpoint bears."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

LONGEST_BACKOFF_S = 30.0
FIRST_BACKOFF_S = 0.5


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain 1989, Computer Networks 17(1)) of open requests.

    At most ``most`` requests are open. A refusal halves the limit and closes the door for the time that the endpoint
    asks for, or for a time that doubles with every refusal in a row; an answer raises the limit by 1 / limit, so by
    about one in each round. Requests that were open before the newest cut are one event with it: their refusals cut
    nothing more. Waiting callers go in their order; a refused request goes first.

    No wait that an endpoint asks for is longer than ``longest_wait_s``. Belongs to one event loop. ``closed_for`` and
    ``open`` may be read from any thread.
    """

    def __init__(
        self, most: int, *, longest_wait_s: float = float("inf"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._limit, self._longest_wait, self._clock = most, float(most), longest_wait_s, clock
        self._queue: deque[asyncio.Future[None]] = deque()
        self._closed_until = self._last_cut = float("-inf")
        self._refusals = 0
        self._timer: asyncio.TimerHandle | None = None
        self.open = 0

    @property
    def limit(self) -> int:
        """How many requests may be open now."""
        return max(1, int(self._limit))

    @property
    def refusing(self) -> bool:
        """Whether the newest answer was a refusal."""
        return self._refusals > 0

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._queue)

    @property
    def closed_for(self) -> float:
        """Seconds until requests may be sent again; 0 when they may."""
        return max(0.0, self._closed_until - self._clock())

    async def enter(self, *, again: bool = False) -> float:
        """Wait for a place; returns the time at which it was taken, for ``refused``. ``again``: before all others."""
        if self._free() and (again or not self._queue):
            self.open += 1
            return self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._queue.appendleft if again else self._queue.append)(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place came together with the cancellation
            elif turn in self._queue:
                self._queue.remove(turn)
            raise
        return self._clock()

    def leave(self) -> None:
        """Give the place back."""
        self.open -= 1
        self._admit()

    def answered(self) -> None:
        """An answer came."""
        self._refusals = 0
        self._limit = min(float(self._most), self._limit + 1.0 / self._limit)

    def refused(self, taken_at: float, retry_after: float | None) -> float:
        """The endpoint refused the request whose place was taken at ``taken_at``; returns seconds until the next try.

        ``retry_after`` is what the endpoint asked for, in seconds, or None.
        """
        now = self._clock()
        if taken_at > self._last_cut:
            self._last_cut = now
            self._limit = max(1.0, self._limit / 2.0)
            self._refusals += 1
        if retry_after is None:
            retry_after = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(16, max(0, self._refusals - 1)))
        # An endpoint that asks for a day, or whose clock is ahead, is asked again after ``longest_wait_s``.
        self._closed_until = max(self._closed_until, now + min(retry_after, self._longest_wait))
        return self.closed_for

    def _free(self) -> bool:
        return self.open < self.limit and self._clock() >= self._closed_until

    def _admit(self) -> None:
        while self._queue and self._free():
            turn = self._queue.popleft()
            if not turn.done():
                self.open += 1
                turn.set_result(None)
        if self._queue and self._clock() < self._closed_until and self._timer is None:
            # A little late, so that the endpoint's clock has reached the moment too.
            self._timer = asyncio.get_running_loop().call_later(self.closed_for + 0.01, self._reopen)

    def _reopen(self) -> None:
        self._timer = None
        self._admit()
