"""The sections ``trainer``, ``callbacks`` and ``logger``: arguments of Lightning's Trainer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from .section import Section


class TrainerConfig(Section):
    """The Lightning Trainer's length, validation and checkpoints.

    ``max_epochs``, ``max_steps`` and ``max_time`` are Lightning's: the first that is reached ends training after the
    current batch. ``max_steps`` counts optimizer steps (``global_step``; in names of checkpoints and in loggers too).
    A batch makes ``actor.ppo_n_minibatches`` of them, fewer where a minibatch has no signal. A resumed run counts from
    the start of its training. Lightning does not continue an epoch that ``max_steps`` or ``max_time`` cut short: a run
    that is resumed with a later limit starts with the next epoch. ``config.trainer_words`` lists the Trainer's
    arguments that cannot be set, with reasons.
    """

    max_epochs: int = Field(ge=-1, description="largest number of epochs; -1: no limit")
    max_steps: int = Field(
        ge=-1, description="largest number of optimizer steps (actor.ppo_n_minibatches per batch); -1: no limit"
    )
    max_time: str | dict[str, int] | None = Field(
        description="time limit, DD:HH:MM:SS or e.g. {hours: 2}, validations included; a resumed run continues to count"
    )
    min_epochs: int | None = Field(
        ge=0, description="epochs before which only max_epochs and max_steps end training; null: none"
    )
    min_steps: int | None = Field(
        ge=0, description="optimizer steps before which only max_epochs and max_steps end training; null: none"
    )
    validate_before: bool = Field(description="validate the policy before training")
    validate_after: bool = Field(description="validate the policy after training")
    validate_every_n_epochs: int = Field(
        ge=0, description="epochs between two validations during training; 0: none during training"
    )
    limit_val_batches: int | float | None = Field(
        description="0: no validation; null: whole validations; for fewer tasks use valid_dataset.limit"
    )
    checkpoint_every_n_epochs: int = Field(
        ge=1, description="epochs between two checkpoints; the end of training makes one, too"
    )
    checkpoint_every_n_steps: int | None = Field(
        ge=1, description="a checkpoint after every so many training batches, besides those by epochs; null: none"
    )
    checkpoint_every_n_minutes: float | None = Field(
        gt=0,
        description="a checkpoint after the first batch that ends so many minutes after the one before; null: none",
    )
    save_top_k: int = Field(
        ge=-1,
        description="number of newest checkpoints and exports to keep, besides the best by pass^1; -1: all; 0: none",
    )
    export_every_n_steps: int | None = Field(
        ge=1,
        description="an export (exports/step<n>) after every so many batches and after the best validation; null: none",
    )
    grace_seconds: float = Field(
        gt=0,
        description="seconds that a run may take to save and end after SIGTERM or Ctrl-C; a scheduler must wait longer",
    )
    train_timeout: float = Field(gt=0, description="largest number of seconds for the training step on one batch")
    save_timeout: float = Field(gt=0, description="largest number of seconds for writing one checkpoint")
    rank_timeout: float = Field(
        gt=0,
        description="seconds without a sign of life after which a rank of several counts as lost, which ends the run",
    )
    async_save: bool = Field(description="write checkpoints in the background while training continues")
    progress: Literal["auto", "rich", "plain", "off"] = Field(
        description="progress on the screen; auto: rich on a terminal, else plain"
    )
    log_every_n_steps: int = Field(ge=1, description="batches between two lines of metrics")
    profiler: Literal["simple", "advanced", "pytorch"] | None = Field(
        description="Lightning's profiler of this process; writes to the run's logs/; null: none"
    )
    max_skipped_steps: int = Field(
        ge=0,
        description="steps with a non-finite gradient are left out; more than so many of the newest 100 end the run",
    )
    detect_anomaly: bool = Field(description="stop at the operation that makes a gradient NaN; slow")
    accelerator: Literal["auto", "cpu", "cuda"] = Field(
        description="device of the trainer; cpu: engines use no GPU either"
    )


class LoggerConfig(Section):
    """Where metrics go, besides the CSV file that every run writes: ``entries`` by name, each with its ``_target_``.

    The entries refer to ``project``, ``entity`` and ``tags``.
    """

    model_config = ConfigDict(extra="allow")

    project: str | None = Field(description="name of the W&B project")
    entity: str | None = Field(description="W&B user or team; null: the account's default")
    tags: list[str] = Field(description="W&B tags of the run")

    @property
    def entries(self) -> dict[str, Any]:
        """The loggers by name; see ``run.instantiate``."""
        return dict(self.model_extra or {})
