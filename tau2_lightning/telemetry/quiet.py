"""Silences notices of libraries that a run cannot act on."""

from __future__ import annotations

import logging
import warnings

_LOGGERS = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "httpx", "httpcore")
_WARNINGS = (
    ".*does not have many workers.*",
    ".*`__len__` on an iterable.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*torch.distributed is disabled.*",
    ".*Detected call of `lr_scheduler.step.*",  # the first planned steps had no signal
    ".*`srun` command is available.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # batches are made, not read: none is lost
)


def quiet_libraries() -> None:
    """Keep notices of Lightning, torch and httpx off the screen; other warnings remain."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
