"""The schema of a run's configuration: types, bounds and help of every key. ``conf/`` holds the defaults; rules that
span several keys are in ``run/rules.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .actor import ActorConfig, OptimizerConfig
from .environment import EnvironmentConfig, GenerationConfig, TrainDatasetConfig, ValidDatasetConfig
from .machines import ClusterConfig, SchedulerConfig
from .rollout import RolloutConfig
from .section import Section
from .warm_start import WarmStartConfig

__all__ = ["SECRETS", "LoggerConfig", "OptimizerConfig", "RunConfig", "TrainerConfig"]

# Never written to a file or a logger.
SECRETS: Any = {"econfig": {"user_llm_api_key"}, "rollout": {"engine_api_key"}}


class TrainerConfig(Section):
    """The Lightning Trainer's length, validation and checkpoints."""

    max_epochs: int = Field(4, ge=0)
    validate_before: bool = True
    validate_after: bool = True
    validate_every_n_epochs: int = Field(0, ge=0)
    checkpoint_every_n_epochs: int = Field(1, ge=1)
    save_top_k: int = Field(1, ge=-1)
    async_save: bool = False
    progress: Literal["auto", "rich", "plain", "off"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"


class LoggerConfig(Section):
    """Where metrics go beside the CSV file every run writes."""

    name: Literal["wandb", "tensorboard", "csv"] = "wandb"
    project: str | None = "tau2_lightning"
    entity: str | None = None
    tags: list[str] = []  # noqa: RUF012


class RunConfig(Section):
    """A whole run. ``tau2_lightning.run.compose.load_config`` makes it."""

    mode: Literal["train", "validate", "plan"] = Field(description="plan: print what would run where, start nothing")
    experiment_name: str = Field(description="run folder: <output_dir>/<experiment_name>/<trial_name>")
    trial_name: str | None = Field(description="null: a timestamp; name it to resume or compare")
    output_dir: Path = Field(description="where run folders are")
    cache_dir: Path = Field(description="tiny policies, warm starts and the engine's compile cache")
    ckpt_path: str | None = Field(
        description="a checkpoint to resume from or to validate; `last` takes the run folder's newest"
    )
    seed: int = Field(ge=0, description="of sampling and of the order of tasks")
    allocation_mode: str = Field(description="which devices do what, e.g. vllm:d4t2+archon:d4p2t1")
    cluster: ClusterConfig
    scheduler: SchedulerConfig
    train_dataset: TrainDatasetConfig
    valid_dataset: ValidDatasetConfig
    gconfig: GenerationConfig
    econfig: EnvironmentConfig
    actor: ActorConfig
    rollout: RolloutConfig
    algorithm: dict[str, Any] = Field(description="the algorithm's class, `_target_`, and its arguments")
    trainer: TrainerConfig
    logger: LoggerConfig
    warm_start: WarmStartConfig

    @property
    def tiny(self) -> bool:
        """Whether the policy is the embedded one, made from nothing."""
        return self.actor.path is None
