"""The sections ``trainer`` and ``logger``: Lightning's Trainer, and where metrics go."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from .section import Section


class TrainerConfig(Section):
    """Lightning's Trainer: length, validation, checkpoints.

    ``max_epochs``, ``max_steps`` and ``max_time`` are Lightning's own: the first that is reached ends training, after
    the batch under way. They count from the start of training, also when it is resumed. Arguments of the Trainer that
    are not here are in ``config.trainer_words``, with the reason and the key to use.
    """

    max_epochs: int = Field(ge=-1, description="of train_dataset.batches_per_epoch batches each; -1: no limit")
    max_steps: int = Field(
        ge=-1,
        description="optimizer steps, which checkpoints' names and loggers count too: actor.ppo_n_minibatches a batch, "
        "fewer without signal; -1: no limit",
    )
    max_time: str | dict[str, int] | None = Field(
        description="DD:HH:MM:SS or e.g. {hours: 2}, validations between epochs included; null: no limit"
    )
    min_epochs: int | None = Field(ge=0, description="nothing but max_epochs and max_steps ends training before")
    min_steps: int | None = Field(ge=0, description="optimizer steps; nothing but the maxima ends training before")
    validate_before: bool = Field(description="validate the policy that training starts from")
    validate_after: bool = Field(description="validate the trained policy")
    validate_every_n_epochs: int = Field(ge=0, description="0: only before and after")
    limit_val_batches: int | float | None = Field(
        description="0: no validation at all; null: whole ones, which valid_dataset.limit makes smaller"
    )
    checkpoint_every_n_epochs: int = Field(ge=1, description="epochs between two checkpoints")
    save_top_k: int = Field(ge=-1, description="so many checkpoints, the newest, are kept; -1: all, 0: none is written")
    async_save: bool = Field(description="write checkpoints in the background while training goes on")
    progress: Literal["auto", "rich", "plain", "off"] = Field(description="auto: rich on a terminal, else plain")
    log_every_n_steps: int = Field(ge=1, description="batches between two lines of metrics")
    profiler: Literal["simple", "advanced", "pytorch"] | None = Field(
        description="Lightning's profiler of that name writes to the run's logs/"
    )
    detect_anomaly: bool = Field(description="find the operation that made a gradient NaN; slow")
    accelerator: Literal["auto", "cpu", "cuda"] = Field(description="cpu keeps the engines off the GPUs too")


class LoggerConfig(Section):
    """Where metrics go beside the CSV file every run writes.

    Every other key is the name of a logger, with its ``_target_`` and arguments; these refer to the keys below.
    """

    model_config = ConfigDict(extra="allow")

    project: str | None = Field(description="of W&B")
    entity: str | None = Field(description="of W&B; null: the default of the account")
    tags: list[str] = Field(description="of the run in W&B")

    @property
    def entries(self) -> dict[str, Any]:
        """The loggers by name; see ``run.instantiate``."""
        return dict(self.model_extra or {})
