"""List the package's files that a training task passes on its way to a gradient.

Runs the main job in this process and records every file of the package of which a function runs between the drawing of
the first task and the first optimizer step, in any thread. Files that run only at start-up or afterwards do not count.

    python -m tools.trace_task domain=mock experiment=quick logger=csv

The words are those of `python -m tau2_lightning.train`. The last line is JSON: the number of files and their names.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import tau2_lightning
from tau2_lightning import train
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.environment.sampler import TaskSampler

PACKAGE = Path(tau2_lightning.__file__).parent
OPENED, CLOSED = "opened", "closed"


class Trace:
    """Files of the package whose functions run while the trace is open; it opens and closes once."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.state = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.state == OPENED and event == "call":
            self.files.add(frame.f_code.co_filename)

    def names(self) -> list[str]:
        """Paths below the package, without the ``__init__.py`` files of packages."""
        inside = (Path(name) for name in self.files if name.startswith(str(PACKAGE)))
        return sorted(str(path.relative_to(PACKAGE)) for path in inside if path.name != "__init__.py")


def before(cls: type, method: str, act: Callable[[], None]) -> None:
    """Call ``act`` ahead of every call of ``cls.method``."""
    original = getattr(cls, method)

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        act()
        return original(self, *arguments, **named)

    setattr(cls, method, wrapped)


def main(words: list[str]) -> int:
    trace = Trace()

    def opened() -> None:
        if not trace.state:
            trace.state = OPENED
            threading.setprofile(trace)
            sys.setprofile(trace)

    def closed() -> None:
        if trace.state == OPENED:
            trace.state = CLOSED
            threading.setprofile(None)

    # Profiling slows Python down, so each thread is profiled from the moment when the task can reach it.
    before(Tau2DataModule, "train_dataloader", lambda: sys.setprofile(trace))  # the main thread
    before(TaskSampler, "__next__", opened)  # the thread of the rollouts, and those that start later
    before(torch.optim.AdamW, "step", closed)
    code = train.main(words)
    print(json.dumps({"files": len(trace.names()), "names": trace.names()}))
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
