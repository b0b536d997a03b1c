"""The schema of a run's configuration: types, bounds and help of every key. ``conf/`` holds the defaults; rules that
span several keys are in ``run/rules.py``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .actor import ActorConfig, OptimizerConfig
from .environment import DomainConfig, EnvironmentConfig, GenerationConfig, TrainDatasetConfig, ValidDatasetConfig
from .machines import ClusterConfig, SchedulerConfig
from .paths import FolderPath, PathText
from .rollout import RolloutConfig
from .section import Section
from .trainer import LoggerConfig, TrainerConfig
from .warm_start import WarmStartConfig

__all__ = ["SECRETS", "LoggerConfig", "OptimizerConfig", "RunConfig", "TrainerConfig"]

# Never written to a file or a logger.
SECRETS: Any = {
    "econfig": {"user_llm_api_key", "judge_llm_api_key"},
    "rollout": {"engine_api_key"},
    "domains": {"__all__": {"econfig": {"user_llm_api_key", "judge_llm_api_key"}}},
}


class RunConfig(Section):
    """A whole run. ``tau2_lightning.run.compose.load_config`` makes it."""

    mode: Literal["train", "validate"] = Field(description="what to do; validate: play the validation only")
    plan: bool = Field(
        description="print what `mode` would do, where and in how much memory, and start nothing; short: mode=plan"
    )
    experiment_name: PathText = Field(
        description="second part of the run folder <output_dir>/<experiment_name>/<trial_name>"
    )
    trial_name: PathText | None = Field(
        description="last part of the run folder; null: a timestamp; give a name to resume or compare"
    )
    output_dir: FolderPath = Field(description="folder of the run folders")
    cache_dir: FolderPath = Field(description="folder for tiny policies, warm starts and the engine's compile cache")
    ckpt_path: PathText | None = Field(
        description="checkpoint to resume from or to validate; last: the newest of the run folder; null: none"
    )
    seed: int = Field(ge=0, description="seed of sampling and of the order of tasks")
    allocation_mode: str = Field(description="which devices do what, e.g. vllm:d4t2+archon:d4p2t1")
    cluster: ClusterConfig
    scheduler: SchedulerConfig
    train_dataset: TrainDatasetConfig
    valid_dataset: ValidDatasetConfig
    gconfig: GenerationConfig
    econfig: EnvironmentConfig
    domains: dict[str, DomainConfig] = Field(
        description="domains of a run with several, by name: its weight, and what differs in it; {} for one domain"
    )
    actor: ActorConfig
    rollout: RolloutConfig
    algorithm: dict[str, Any] = Field(description="the algorithm's class, `_target_`, and its arguments")
    trainer: TrainerConfig
    callbacks: dict[str, Any] = Field(description="Lightning callbacks by name, each with its `_target_`")
    logger: LoggerConfig
    warm_start: WarmStartConfig

    @property
    def by_domain(self) -> dict[str, RunConfig]:
        """The configuration of each domain by name: this one, with the sections of that domain and no other domain."""
        if not self.domains:
            return {self.econfig.domain: self}
        return {
            name: self.model_copy(
                update={
                    "econfig": one.econfig,
                    "train_dataset": one.train_dataset,
                    "valid_dataset": one.valid_dataset,
                    "domains": {},
                }
            )
            for name, one in self.domains.items()
        }

    @property
    def weights(self) -> dict[str, float]:
        """Each domain's share of the training tasks, relative to the others; 1 for the only domain."""
        return {name: one.weight for name, one in self.domains.items()} or {self.econfig.domain: 1.0}

    @property
    def tiny(self) -> bool:
        """Whether the policy is the embedded one, made from nothing."""
        return self.actor.path is None
