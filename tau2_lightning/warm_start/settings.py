"""The keys of ``conf/warm_start``: what is demonstrated, and how the policy is fine-tuned on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tau2_lightning.errors import ConfigError, Violation


class WarmStartSettings(BaseModel):
    """Settings of one supervised fine-tuning. ``data`` (a JSONL file of OpenAI messages) replaces demonstrations.

    The demonstrator leaves a needed fix out with probability ``skip``, the tools in ``weak_skills`` with ``weak_skip``.
    ``steps`` optimizer steps of ``tokens_per_step`` tokens; 0 steps leave the policy untrained. The learning
    rate rises over ``warmup_steps`` and falls linearly to 2 % from the fraction ``decay_from`` of the steps on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0)
    demonstrations: int = Field(2000, ge=1)
    data: str | None = None
    skip: float = Field(0.2, ge=0, lt=1)
    weak_skills: tuple[str, ...] = ()
    weak_skip: float = Field(0.75, ge=0, le=1)
    require_reward: float | None = None
    vocab_size: int = Field(2048, ge=320)
    max_position_embeddings: int = Field(4096, ge=256)
    max_tokens: int = Field(2000, ge=2)
    steps: int = Field(400, ge=0)
    tokens_per_step: int = Field(4096, ge=16)
    learning_rate: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(20, ge=0)
    decay_from: float = Field(0.3, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"

    @classmethod
    def parse(cls, values: Mapping[str, Any], key: str = "warm_start") -> WarmStartSettings:
        """Check ``values``; raises ConfigError that lists every violation with its dotted key."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(
                [
                    Violation(
                        ".".join([key, *map(str, item["loc"])]), item.get("input"), item["msg"], f"See conf/{key}/"
                    )
                    for item in error.errors()
                ]
            ) from None
