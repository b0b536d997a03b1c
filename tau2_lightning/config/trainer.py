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
    the start of its training. ``config.trainer_words`` lists the Trainer's arguments that cannot be set, with reasons.
    """

    max_epochs: int = Field(ge=-1, description="epochs; -1: no limit")
    max_steps: int = Field(ge=-1, description="optimizer steps: actor.ppo_n_minibatches a batch; -1: no limit")
    max_time: str | dict[str, int] | None = Field(
        description="DD:HH:MM:SS or e.g. {hours: 2}, validations included; a resumed run continues to count"
    )
    min_epochs: int | None = Field(ge=0, description="before it, only max_epochs and max_steps end training")
    min_steps: int | None = Field(ge=0, description="before it, only max_epochs and max_steps end training")
    validate_before: bool = Field(description="validate the starting policy")
    validate_after: bool = Field(description="validate the trained policy")
    validate_every_n_epochs: int = Field(ge=0, description="validate during training; 0: only before and after")
    limit_val_batches: int | float | None = Field(
        description="0: no validation at all; valid_dataset.limit makes one smaller"
    )
    checkpoint_every_n_epochs: int = Field(ge=1, description="epochs between two checkpoints")
    save_top_k: int = Field(ge=-1, description="the newest checkpoints that are kept; -1: all, 0: none is written")
    async_save: bool = Field(description="write checkpoints in the background while training continues")
    progress: Literal["auto", "rich", "plain", "off"] = Field(description="what the screen shows; auto: by terminal")
    log_every_n_steps: int = Field(ge=1, description="batches between two lines of metrics")
    profiler: Literal["simple", "advanced", "pytorch"] | None = Field(
        description="measures where this process spends its time; writes to the run's logs/"
    )
    detect_anomaly: bool = Field(description="find the operation that makes a gradient NaN; slow")
    accelerator: Literal["auto", "cpu", "cuda"] = Field(description="cpu keeps the engines off the GPUs too")


class LoggerConfig(Section):
    """Where metrics go, besides the CSV file that every run writes: ``entries`` by name, each with its ``_target_``.

    The entries refer to ``project``, ``entity`` and ``tags``.
    """

    model_config = ConfigDict(extra="allow")

    project: str | None = Field(description="W&B project")
    entity: str | None = Field(description="W&B user or team; null: the account's default")
    tags: list[str] = Field(description="W&B tags of the run")

    @property
    def entries(self) -> dict[str, Any]:
        """The loggers by name; see ``run.instantiate``."""
        return dict(self.model_extra or {})
