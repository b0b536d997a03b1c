"""The memory of a run and its children together, sampled while it works."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

SAMPLE_SECONDS = 5.0


@dataclass(frozen=True)
class Sampled:
    """Bytes of a run and its children: in the newest sample, and the most of all."""

    now: int
    peak: int


_sampling: list[PeakMemory] = []  # whose block is being run


def sampled() -> Sampled | None:
    """What the run of this process has sampled so far; None where nobody samples."""
    return Sampled(_sampling[-1].newest, _sampling[-1].peak) if _sampling else None


def device_bytes(device: torch.device | None) -> tuple[int, int] | None:
    """Bytes of a GPU that are in use, by whatever process, and all that it has; None for another device."""
    if device is None or device.type != "cuda":
        return None
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


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
    """Samples ``tree_bytes`` in a thread inside its ``with`` block; ``peak`` is the largest seen, ``newest`` the
    last, in bytes."""

    def __init__(self, every: float = SAMPLE_SECONDS) -> None:
        self.peak = self.newest = 0
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self.sample()
        _sampling.append(self)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _sampling.remove(self)
        self._done.set()
        self._thread.join(timeout=10)

    def sample(self) -> None:
        """Take a sample now."""
        self.newest = tree_bytes()
        self.peak = max(self.peak, self.newest)

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.sample()
