"""An event loop whose clock jumps: sleeps cost nothing, and no test depends on how fast the machine is."""

from __future__ import annotations

import asyncio
import selectors


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: when the loop would sleep until its next timer, its clock is moved there."""

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
    """For tests that neither use threads nor speak to another process."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now


class VirtualTimePolicy(asyncio.DefaultEventLoopPolicy):
    """Makes ``VirtualTimeLoop``s: return it from a module's ``event_loop_policy`` fixture."""

    def new_event_loop(self) -> VirtualTimeLoop:
        return VirtualTimeLoop()
