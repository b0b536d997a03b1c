"""Silences notices of libraries that a run cannot act on."""

from __future__ import annotations

import logging
import os
import warnings

_LOGGERS = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric", "httpx", "httpcore")
#: What vLLM says of Triton when its parsers are imported on a machine without a GPU.
_OF_IMPORTS = ("vllm.triton_utils",)
_WARNINGS = (
    ".*does not have many workers.*",
    ".*`__len__` on an iterable.*",
    ".*`IterableDataset` has `__len__` defined.*",
    ".*torch.distributed is disabled.*",
    ".*Detected call of `lr_scheduler.step.*",  # the first planned steps had no signal
    ".*Experiment logs directory.*exists and is not empty.*",  # the record of metrics goes on, nothing is deleted
    r".*was provided to the `Field\(\)` function.*",  # of pydantic, when wandb is imported
    ".*`srun` command is available.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # batches are made, not read: none is lost
)


def quiet_notices() -> None:
    """Keep notices of libraries that are not imported yet off the screen; other warnings remain. Imports nothing."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _OF_IMPORTS:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("WANDB_SILENT", "true")


def quiet_libraries() -> None:
    """As `quiet_notices`, and no bars of transformers, which is imported."""
    quiet_notices()
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
