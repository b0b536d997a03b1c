"""The memory of a run and its children together, sampled while it works."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import psutil

SAMPLE_SECONDS = 5.0


def tree_bytes(root: psutil.Process | None = None) -> int:
    """Bytes of the process (default: this one) and all its descendants, each shared page counted once (PSS).

    Where the system does not report proportional sizes, resident ones are added instead, which is an upper bound.
    """
    root = root or psutil.Process()
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                info = process.memory_full_info()
                total += getattr(info, "pss", 0) or info.rss
    return total


class PeakMemory:
    """Samples ``tree_bytes`` in a thread inside its ``with`` block; ``peak`` is the largest seen, in bytes."""

    def __init__(self, every: float = SAMPLE_SECONDS) -> None:
        self.peak = 0
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=10)

    def sample(self) -> None:
        """Take a sample now."""
        self.peak = max(self.peak, tree_bytes())

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.sample()
