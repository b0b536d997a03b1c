"""The sections ``train_dataset``, ``valid_dataset``, ``gconfig`` and ``econfig``: tasks, sampling, tau2's settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .section import Section


class TrainDatasetConfig(Section):
    """Which tasks train."""

    split: str = Field(description="split of tau2's tasks")
    batch_size: int = Field(ge=1, description="tasks (groups) of a training step")
    batches_per_epoch: int = Field(ge=1, description="training steps of an epoch")


class ValidDatasetConfig(Section):
    """Which tasks validate."""

    split: str = Field(description="split of tau2's tasks")
    num_trials: int = Field(ge=1, description="episodes of each task")
    limit: int | None = Field(ge=1, description="at most so many tasks, for quick looks; null: all")


class GenerationConfig(Section):
    """Sampling of the policy."""

    n_samples: int = Field(ge=2, description="rollouts of one task: the group that advantages are taken over")
    max_new_tokens: int = Field(ge=1, description="tokens of one turn")
    max_tokens: int = Field(ge=16, description="prompt and completion together: the engine's context")
    temperature: float = Field(gt=0, description="sampling temperature")
    top_p: float = Field(gt=0, le=1, description="nucleus sampling, for mode=validate; training needs 1")
    top_k: int = Field(ge=-1, description="top-k sampling, for mode=validate; training needs -1 (off)")


class UserEngineConfig(Section):
    """A second vLLM server, which the run starts itself to play the user."""

    path: str | None = Field(description="Hugging Face folder or hub id; null: no such server")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(description="of weights and activations")
    max_tokens: int = Field(ge=16, description="its context")
    max_new_tokens: int = Field(ge=1, description="tokens of one turn of the user")
    tool_call_parser: str = Field(description="vLLM's name of the parser for the model's tool calls")
    engine_args: list[str] = Field(description="further arguments for the vLLM server")


class EnvironmentConfig(Section):
    """tau2's settings, under the names of AReaL's tau2 example."""

    domain: str = Field(description="tau2 domain")
    solo_mode: bool | None = Field(description="null: solo where the domain has it and no user simulator is configured")
    max_steps: int = Field(ge=2, description="messages of an episode, as tau2 counts them")
    max_errors: int = Field(ge=1, description="tool errors after which an episode ends")
    policy: Literal["full", "none", "ticket"] | None = Field(
        description="policy text of the prompt; null: ticket for the tiny policy in solo mode, else full"
    )
    add_thinking_tool: bool = Field(description="offer the agent a `think` tool that changes nothing")
    user: Literal["llm", "scripted"] | None = Field(
        description="null: llm when user_llm, user_llm_base_url or user_engine.path is set"
    )
    user_llm: str | None = Field(description="model of the user simulator; null: what the server at the URL serves")
    user_llm_base_url: str | None = Field(description="OpenAI-compatible server of the user simulator, with /v1")
    user_llm_api_key: str | None = Field(repr=False, description="key of that server; never written or logged")
    user_llm_args: dict[str, Any] | None = Field(
        description="sampling arguments of the user simulator, e.g. {temperature: 0.0}"
    )
    user_engine: UserEngineConfig
    turn_discount: float = Field(ge=0, le=1, description="factor of a turn's return for each later turn; 1: none")
    invalid_format_penalty: float = Field(ge=0, description="subtracted from a turn's return for a malformed tool call")
    transfer_penalty: float = Field(
        ge=0, description="subtracted from the training reward when the agent transfers a task that does not ask for it"
    )
