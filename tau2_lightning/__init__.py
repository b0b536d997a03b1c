"""GRPO training of tool-using agents on tau2-bench, structured as a PyTorch Lightning project."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .rollout_files.reader import read_rollouts as read_rollouts

__version__ = "0.1.0"

# Read when torch is imported, so it is set here. OpenMP's threads otherwise spin while they wait for each other, and
# where engine, trainer and others share the cores, those that have work wait for those that spin: a training step of
# the tiny policy beside four busy processes took 10.7 s spinning, 1.2 s sleeping. They spin for about ten microseconds
# before they sleep: a step consists of thousands of short parallel pieces. The user's own setting is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    """``tau2_lightning.read_rollouts``, imported when it is asked for: the commands must start fast."""
    if name == "read_rollouts":
        from .rollout_files.reader import read_rollouts

        return read_rollouts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
