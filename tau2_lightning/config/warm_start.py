"""The section ``warm_start``: what is demonstrated, and how the policy is fine-tuned on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .paths import PathText
from .section import Section


class WarmStartConfig(Section):
    """Supervised fine-tuning on demonstrations, dialogues or successful simulations: of the embedded tiny policy before
    GRPO, or of any policy by `python -m tau2_lightning.sft`, which takes these keys without their prefix, too. A digest
    of all that changes the result names it in the cache.
    """

    seed: int = Field(
        ge=0, description="seed of weights, demonstrations and the order of batches; GRPO has its own seed"
    )
    demonstrations: int = Field(
        ge=1, description="number of episodes that the demonstrator plays on train_dataset.split"
    )
    data: PathText | tuple[PathText, ...] | None = Field(
        description="JSONL files of messages, tau2 results files, folders of them or of runs; null: demonstrations"
    )
    min_reward: float = Field(
        allow_inf_nan=False, description="smallest reward of a simulation of tau2's results that is learned from"
    )
    accept_held_out_tasks: bool = Field(
        description="learn also from simulations of tasks that are not in train_dataset.split, such as held-out ones"
    )
    skip: float = Field(ge=0, lt=1, description="probability that the demonstrator leaves a needed fix out")
    weak_skills: tuple[str, ...] = Field(
        description="tools that the demonstrator leaves out with probability weak_skip instead of skip"
    )
    weak_skip: float = Field(
        ge=0, le=1, description="probability that the demonstrator leaves out a needed call of weak_skills"
    )
    require_reward: float | None = Field(
        description="smallest reward of a kept demonstration; null: 1.0; no limit for the tiny policy in solo telecom"
    )
    vocab_size: int = Field(ge=320, description="largest vocabulary of the tiny policy's byte-level BPE tokenizer")
    max_position_embeddings: int = Field(ge=256, description="longest sequence of the tiny policy, in tokens")
    max_tokens: int = Field(ge=2, description="largest length of a demonstration, in tokens; longer ones are dropped")
    steps: int | None = Field(
        ge=0, description="optimizer steps; 0: the policy stays untrained; null: as many as warm_start.epochs takes"
    )
    epochs: int = Field(ge=1, description="passes over the data where warm_start.steps is null")
    tokens_per_step: int = Field(ge=16, description="tokens per optimizer step")
    learning_rate: float = Field(gt=0, description="largest learning rate; a real model needs about 1e-5")
    warmup_steps: int = Field(ge=0, description="optimizer steps of linear warm-up")
    decay_from: float = Field(
        ge=0, lt=1, description="fraction of the steps after which the learning rate falls linearly to 2 %"
    )
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(gt=0, description="largest norm of the gradient; a larger gradient is scaled down")
    precision: Literal["fp32", "bf16"] = Field(
        description="compute precision of the warm start; auto as for actor.precision"
    )
    valid_share: float = Field(
        ge=0,
        lt=1,
        description="share of the tasks (of dialogues, where these name no task) that is held out for sft/valid_loss",
    )
    validate_every_n_steps: int | None = Field(
        ge=1, description="optimizer steps between two measurements of sft/valid_loss; null: only at the end"
    )
    checkpoint_every_n_steps: int | None = Field(
        ge=1, description="a checkpoint of the warm start after every so many optimizer steps; null: none by steps"
    )
    checkpoint_every_n_minutes: float | None = Field(
        gt=0,
        allow_inf_nan=False,
        description="minutes between two checkpoints of the warm start, which steps end; null: none by time",
    )

    @property
    def sources(self) -> tuple[str, ...]:
        """The files and folders of ``data``."""
        return (self.data,) if isinstance(self.data, str) else self.data or ()
