"""An event loop whose clock jumps: sleeps take no time, and tests do not depend on the machine's speed."""

from __future__ import annotations

import asyncio
import selectors


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing is scheduled: every task waits for another one")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For tests that use neither threads nor other processes."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now


class VirtualTimePolicy(asyncio.DefaultEventLoopPolicy):
    """Makes ``VirtualTimeLoop``s. A test module returns it from its ``event_loop_policy`` fixture."""

    def new_event_loop(self) -> VirtualTimeLoop:
        return VirtualTimeLoop()
