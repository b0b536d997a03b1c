"""The section ``warm_start``: what is demonstrated, and how the policy is fine-tuned on it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .section import Section


class WarmStartConfig(Section):
    """Supervised fine-tuning on generated, officially verified demonstrations: of the embedded tiny policy before GRPO,
    or of any policy by `python -m tau2_lightning.sft`. A digest of all of this names the result in the cache.
    """

    seed: int = Field(ge=0, description="of weights, demonstrations and the order of batches; GRPO has its own seed")
    demonstrations: int = Field(ge=1, description="episodes that the demonstrator plays on train_dataset.split")
    data: str | None = Field(description="JSONL file of OpenAI messages to learn from instead of demonstrations")
    skip: float = Field(ge=0, lt=1, description="probability that the demonstrator leaves a needed fix out")
    weak_skills: tuple[str, ...] = Field(description="tools that it leaves out with probability weak_skip instead")
    weak_skip: float = Field(ge=0, le=1, description="probability for each of weak_skills")
    require_reward: float | None = Field(
        description="keep demonstrations that earn it; null: 1.0, but any of the tiny policy's in solo telecom"
    )
    vocab_size: int = Field(ge=320, description="upper bound of the tiny policy's byte-level BPE")
    max_position_embeddings: int = Field(ge=256, description="positions of the tiny policy")
    max_tokens: int = Field(ge=2, description="longer demonstrations are dropped")
    steps: int = Field(ge=0, description="optimizer steps; 0 leaves the policy untrained")
    tokens_per_step: int = Field(ge=16, description="tokens of one optimizer step")
    learning_rate: float = Field(gt=0, description="a real model wants about 1e-5")
    warmup_steps: int = Field(ge=0, description="optimizer steps of linear warm-up")
    decay_from: float = Field(
        ge=0, lt=1, description="fraction of the steps after which the learning rate falls linearly to 2 %"
    )
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    max_grad_norm: float = Field(gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16"] = Field(description="compute precision")
