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
    ".*Experiment logs directory.*exists and is not empty.*",  # the record of metrics goes on, nothing is deleted
    ".*`srun` command is available.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # batches are made, not read: none is lost
)


def quiet_libraries() -> None:
    """Keep notices of Lightning, torch and httpx and the bars of transformers off the screen; other warnings remain."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    _no_bars()


def _no_bars() -> None:
    """transformers draws a bar for every load and save, across the live view. Bars of downloads, which take long,
    remain."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging as of_transformers

    downloads = not hub.are_progress_bars_disabled()
    of_transformers.disable_progress_bar()
    if downloads:
        hub.enable_progress_bars()
