"""GRPO training of tool-using agents on tau2-bench, structured as a PyTorch Lightning project.

The names in ``__all__`` are the public Python interface (docs/python.md).
"""

from __future__ import annotations

import os
from importlib import import_module  # noqa: TID251  # the statements above say the same
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datamodule import Tau2DataModule as Tau2DataModule
    from .errors import ConfigError as ConfigError
    from .forward import supervised_microbatches as supervised_microbatches
    from .module import GRPOModule as GRPOModule
    from .report.writing import write_report as write_report
    from .rollout_files.reader import read_rollouts as read_rollouts
    from .run.compose import load_config as load_config
    from .run.prepared import PreparedRun as PreparedRun
    from .run.prepared import prepare as prepare
    from .strategy import ArchonStrategy as ArchonStrategy

__version__ = "0.1.0"

# Read when torch is imported, so it is set here. OpenMP's threads otherwise spin while they wait for each other, and
# where engine, trainer and others share the cores, those that have work wait for those that spin: a training step of
# the tiny policy beside four busy processes took 10.7 s spinning, 1.2 s sleeping. They spin for about ten microseconds
# before they sleep: a step consists of thousands of short parallel pieces. The user's own setting is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Imported when they are asked for: the commands, and `import tau2_lightning`, must start fast.
_WHERE = {
    "ArchonStrategy": "strategy",
    "ConfigError": "errors",
    "GRPOModule": "module",
    "PreparedRun": "run.prepared",
    "Tau2DataModule": "datamodule",
    "load_config": "run.compose",
    "prepare": "run.prepared",
    "read_rollouts": "rollout_files.reader",
    "supervised_microbatches": "forward",
    "write_report": "report.writing",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
