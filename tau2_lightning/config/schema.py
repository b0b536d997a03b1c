"""The schema of a run's configuration: types and single-field rules. Cross-field rules are in ``config_rules``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Never written to a file or a logger.
SECRETS: Any = {"econfig": {"user_llm_api_key"}, "rollout": {"engine_api_key"}}


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterConfig(Section):
    """What the machines have. ``n_gpus_per_node=None`` means what this machine shows, and with Slurm or Ray as many as
    the allocation needs; 0 means CPU.
    """

    n_nodes: int = Field(1, ge=1)
    n_gpus_per_node: int | None = Field(None, ge=0)


class SchedulerConfig(Section):
    """How processes are started. ``slurm`` goes to submitit's SlurmExecutor, under sbatch's names."""

    type: Literal["local", "slurm", "ray"] = "local"
    cpus_per_node: int | None = Field(None, ge=1)
    start_timeout: float = Field(600.0, gt=0)
    slurm: dict[str, Any] | None = None
    ray_address: str = "auto"


class TrainDatasetConfig(Section):
    """Which tasks train: ``batch_size`` tasks (groups) a step, ``batches_per_epoch`` steps an epoch."""

    split: str
    batch_size: int = Field(16, ge=1)
    batches_per_epoch: int = Field(5, ge=1)


class ValidDatasetConfig(Section):
    """Which tasks validate, how often each is tried, and at most how many tasks (None: all)."""

    split: str
    num_trials: int = Field(4, ge=1)
    limit: int | None = Field(None, ge=1)


class GenerationConfig(Section):
    """Sampling of the policy. ``max_tokens`` bounds prompt and completion together, ``max_new_tokens`` one turn."""

    n_samples: int = Field(8, ge=2)
    max_new_tokens: int = Field(96, ge=1)
    max_tokens: int = Field(2048, ge=16)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(-1, ge=-1)


class UserEngineConfig(Section):
    """A second vLLM server that the run starts itself, to play the user with the model at ``path``."""

    path: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_tokens: int = Field(16384, ge=16)
    max_new_tokens: int = Field(512, ge=1)
    tool_call_parser: str = "hermes"
    engine_args: list[str] = []


class EnvironmentConfig(Section):
    """tau2's settings, under the names AReaL's tau2 example gave them."""

    domain: str
    solo_mode: bool | None = None
    max_steps: int = Field(100, ge=2)
    max_errors: int = Field(10, ge=1)
    policy: Literal["full", "none", "ticket"] | None = None
    add_thinking_tool: bool = False
    user: Literal["llm", "scripted"] | None = None
    user_llm: str | None = None
    user_llm_base_url: str | None = None
    user_llm_api_key: str | None = Field(None, repr=False)
    user_llm_args: dict[str, Any] | None = None
    user_engine: UserEngineConfig = UserEngineConfig()
    turn_discount: float = Field(1.0, ge=0, le=1)
    invalid_format_penalty: float = Field(0.0, ge=0)
    transfer_penalty: float = Field(0.0, ge=0)


class OptimizerConfig(Section):
    """AdamW with gradient clipping by norm. The learning rate rises linearly over ``warmup_steps`` optimizer steps and
    then falls linearly to ``lr * final_lr_fraction`` at the end of training (1: it stays).
    """

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    final_lr_fraction: float = Field(1.0, ge=0, le=1)
    gradient_clipping: float = Field(1.0, gt=0)


class LoRAConfig(Section):
    """Adapters of rank ``r`` (0: all weights are trained instead), scaled by ``alpha`` / r. ``sync`` is what engines
    get: the adapter by itself, or the weights it is merged into.
    """

    r: int = Field(0, ge=0)
    alpha: float = Field(16.0, gt=0)
    target_modules: list[str] = Field(["all-linear"], min_length=1)
    sync: Literal["adapter", "merged"] = "adapter"


class FSDPConfig(Section):
    """``replicate`` copies of the parameters over the d x c ranks: 1 shards them over all ranks, d x c repeats them on
    each, what lies between is hybrid (sharded within, repeated across).
    """

    replicate: int = Field(1, ge=1)


class ActorConfig(Section):
    """The policy that learns. ``path=None`` is the embedded tiny policy of the given ``size``."""

    path: str | None = None
    size: Literal["s", "m", "l"] | None = "s"
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: OptimizerConfig
    ppo_n_minibatches: int = Field(1, ge=1)
    max_tokens_per_mb: int = Field(8192, ge=16)
    packing: bool = True
    handwritten_elementwise: bool = False
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    schedule: str = "1F1B"
    lora: LoRAConfig = LoRAConfig()
    fsdp: FSDPConfig = FSDPConfig()


class WeightSyncConfig(Section):
    """How new weights reach the engine, and how closely engine and trainer must agree afterwards."""

    backend: Literal["auto", "shm", "ipc", "nccl"] = "auto"
    timeout: float = Field(300.0, gt=0)
    parity_tolerance: float | None = Field(None, gt=0)
    parity_rows: int = Field(2, ge=1)


class RolloutConfig(Section):
    """Episodes, proxy and engine."""

    max_concurrent_rollouts: int = Field(128, ge=1)
    max_head_offpolicyness: int = Field(0, ge=0)
    stragglers: Literal["wait", "drop"] = "wait"
    filter_groups: bool = True
    max_refill_groups: int = Field(8, ge=0)
    retries: int = Field(2, ge=0)
    episode_timeout: float = Field(600.0, gt=0)
    request_timeout: float = Field(120.0, gt=0)
    collect_timeout: float = Field(1800.0, gt=0)
    official_check: float = Field(0.02, ge=0, le=1)
    seeded_sampling: bool | None = None
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    tool_call_parser: str = "hermes"
    enforce_tool_choice: bool = False
    history_policy: Literal["keep", "branch"] = "keep"
    mode: Literal["collect", "online"] = "collect"
    session_timeout: float = Field(3600.0, gt=0)
    group_timeout: float = Field(3600.0, gt=0)
    rate_limit: float = Field(0.0, ge=0)
    workflow: dict[str, Any] | None = None
    engine_urls: list[str] = []
    engine_api_key: str | None = Field(None, repr=False)
    engine_port: int = Field(0, ge=0, le=65535)
    engine_start_timeout: float = Field(600.0, gt=0)
    max_num_seqs: int = Field(128, ge=1)
    kv_cache_gib: float = Field(0.5, gt=0)
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    engine_args: list[str] = []
    weight_sync: WeightSyncConfig = WeightSyncConfig()


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
    tags: list[str] = []


class RunConfig(Section):
    """A whole run. Made by ``tau2_lightning.run.compose.load_config``."""

    mode: Literal["train", "validate", "plan"] = "train"
    experiment_name: str = "tau2-grpo"
    trial_name: str | None = None
    output_dir: Path = Path("outputs")
    cache_dir: Path = Path(".cache/tau2_lightning")
    ckpt_path: str | None = None
    seed: int = Field(1, ge=0)
    allocation_mode: str = "vllm:d1+archon:d1p1t1"
    cluster: ClusterConfig = ClusterConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    train_dataset: TrainDatasetConfig
    valid_dataset: ValidDatasetConfig
    gconfig: GenerationConfig
    econfig: EnvironmentConfig
    actor: ActorConfig
    rollout: RolloutConfig = RolloutConfig()
    algorithm: dict[str, Any]
    trainer: TrainerConfig = TrainerConfig()
    logger: LoggerConfig = LoggerConfig()
    warm_start: dict[str, Any] = {}

    @property
    def tiny(self) -> bool:
        """Whether the policy is the embedded one, made from nothing."""
        return self.actor.path is None
