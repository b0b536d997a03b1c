"""The most bytes that torch holds while something runs: the same on every run and on a busy machine, where a process's
resident memory depends on its allocator, its threads and its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that torch has allocated on the CPU, above those at the start, while ``run`` runs."""
    from torch._C._profiler import _EventType

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    results: Any = found.profiler
    waiting = list(results.kineto_results.experimental_event_tree())
    changes: list[tuple[int, int]] = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return int(np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])]).max())
