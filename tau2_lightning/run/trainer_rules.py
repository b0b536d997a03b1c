"""Rules for the keys that are passed on to Lightning's Trainer, and the resulting length of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation

_TIME_UNITS = ("weeks", "days", "hours", "minutes", "seconds")


def check_trainer(config: RunConfig) -> Iterator[Violation]:
    """The violations of ``trainer.*`` beyond types."""
    t = config.trainer
    if t.limit_val_batches not in (None, 0, 1):
        problem = "a validation is one batch, so that its episodes run at the same time"
        remedy = "Use valid_dataset.limit for fewer tasks; 0 switches validation off, null keeps it whole"
        yield Violation("trainer.limit_val_batches", t.limit_val_batches, problem, remedy)
    if t.limit_val_batches == 0 and config.mode == "validate":
        remedy = "Leave it out, or train"
        yield Violation("trainer.limit_val_batches", 0, "leaves nothing to do in mode=validate", remedy)
    if t.max_epochs == -1 and t.max_steps == -1 and t.max_time is None:
        remedy = "Set trainer.max_steps or trainer.max_time, or a number of epochs"
        yield Violation("trainer.max_epochs", -1, "training would never end", remedy)
    if not _is_duration(t.max_time):
        remedy = f"Write DD:HH:MM:SS, e.g. 00:12:00:00, or a mapping with {', '.join(_TIME_UNITS)}"
        yield Violation("trainer.max_time", t.max_time, "is no duration", remedy)


def length_in_words(config: RunConfig) -> str:
    """How long training is, for ``mode=plan``."""
    t, batches = config.trainer, config.train_dataset.batches_per_epoch
    if t.max_epochs == -1:
        text = f"epochs of {batches} steps"
    else:
        text = f"{t.max_epochs * batches} steps ({t.max_epochs} epochs x {batches})"
    limits = [f"{t.max_steps} optimizer steps"] if t.max_steps >= 0 else []
    limits += [str(t.max_time)] if t.max_time is not None else []
    return f"{text}, at most {' and '.join(limits)}," if limits else text


def _is_duration(value: str | dict[str, int] | None) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value.strip()) is not None
    return value is None or (bool(value) and set(value) <= set(_TIME_UNITS))
