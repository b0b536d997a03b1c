"""The sections ``train_dataset``, ``valid_dataset``, ``gconfig`` and ``econfig``: tasks, sampling, tau2's settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .paths import PathText
from .section import Section


class TrainDatasetConfig(Section):
    """Which tasks train."""

    split: str = Field(description="split of tau2's tasks, or a file NAME.txt with one task id on each line")
    batch_size: int = Field(ge=1, description="tasks (groups) per training step")
    batches_per_epoch: int = Field(ge=1, description="training steps per epoch")
    accept_changed_tasks: bool = Field(
        description="resume although the checkpoint was trained on other tasks: the order of tasks starts anew"
    )


class ValidDatasetConfig(Section):
    """Which tasks validate."""

    split: str = Field(description="split of tau2's tasks, or a file NAME.txt with one task id on each line")
    num_trials: int = Field(ge=1, description="episodes per task")
    limit: int | None = Field(
        ge=1, description="largest number of tasks, spread evenly over their kinds; null: all tasks"
    )
    greedy: bool = Field(description="validations take the likeliest token every time, as temperature 0 does")
    temperature: float | None = Field(
        ge=0, description="sampling temperature of validations; 0: the likeliest token; null: gconfig.temperature"
    )
    top_p: float | None = Field(gt=0, le=1, description="top_p of validations; null: gconfig.top_p")
    timeout: float | None = Field(
        gt=0,
        description="seconds of a validation of all domains; then finished episodes count; "
        "null: rollout.collect_timeout, then the run stops",
    )


class GenerationConfig(Section):
    """Sampling of the policy."""

    n_samples: int = Field(ge=2, description="rollouts per task: the group over which advantages are computed")
    max_new_tokens: int = Field(ge=1, description="largest number of tokens that the policy samples in one turn")
    max_tokens: int = Field(
        ge=16, description="largest number of tokens of prompt and completion together: the engine's context length"
    )
    temperature: float = Field(
        gt=0, description="sampling temperature, above 0; of validations: valid_dataset.temperature"
    )
    top_p: float = Field(gt=0, le=1, description="nucleus sampling, for mode=validate; training needs 1")
    top_k: int = Field(ge=-1, description="top-k sampling, for mode=validate; training needs -1 (off)")
    enable_thinking: bool | None = Field(
        description="the argument enable_thinking of the chat template, in training and validation; null: its default"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        description="further arguments of the chat template, e.g. {reasoning_effort: low}; the template must use them"
    )


class UserEngineConfig(Section):
    """A second engine server, which the run starts itself to play the user."""

    path: PathText | None = Field(
        description="Hugging Face folder or hub id of the user's model; null: the run starts no such server"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        description="data type of weights and activations; auto: vLLM chooses"
    )
    max_tokens: int = Field(ge=16, description="context length of this server, in tokens")
    max_new_tokens: int = Field(ge=1, description="largest number of tokens in one turn of the user")
    tool_call_parser: str = Field(description="vLLM's name of the parser for the tool calls of the user's model")
    engine_args: list[str] = Field(
        description='further arguments for this server, e.g. ["--max-num-batched-tokens=4096"]'
    )


class EnvironmentConfig(Section):
    """tau2's settings, under the names of AReaL's tau2 example."""

    domain: str = Field(description="name of the tau2 domain")
    solo_mode: bool | None = Field(
        description="play without a user; null: yes where the domain allows it and no user simulator is configured"
    )
    max_steps: int = Field(ge=2, description="largest number of messages in an episode, as tau2 counts them")
    max_errors: int = Field(ge=1, description="tool errors after which an episode ends")
    policy: Literal["full", "none", "ticket"] | None = Field(
        description="rules in the prompt (ticket: solo only); null: ticket for the tiny policy in solo mode, else full"
    )
    add_thinking_tool: bool = Field(description="offer the agent a `think` tool that changes nothing")
    user: Literal["llm", "scripted"] | None = Field(
        description="kind of user simulator; null: llm when user_llm, user_llm_base_url or user_engine.path is set"
    )
    user_llm: str | None = Field(
        description="model name of the user simulator; null: the one model that user_llm_base_url serves"
    )
    user_llm_base_url: str | None = Field(description="URL of the user simulator's OpenAI-compatible server, with /v1")
    user_llm_api_key: str | None = Field(repr=False, description="API key of that server; never written or logged")
    user_llm_args: dict[str, Any] | None = Field(
        description="sampling arguments of the user simulator; null: {temperature: 0.0}, as in tau2"
    )
    user_reasoning_parser: Literal["auto", "think"] | None = Field(
        description="thoughts split off the user's answers: <think> blocks (think), others' too (auto), none (null)"
    )
    user_max_concurrency: int = Field(
        ge=1, description="largest number of open requests to the user's server; refusals (429) lower it for a while"
    )
    user_deadline: float = Field(
        gt=0, description="seconds for one message of the user, with all retries and waits for a rate limit"
    )
    user_faults: Literal["keep", "exclude", "retry"] = Field(
        description="episodes in which the user breaks its rules: kept, excluded as user:<kind>, or played again"
    )
    user_engine: UserEngineConfig
    judge_llm: str | None = Field(
        description="model name of the judge of tasks whose reward basis has NL_ASSERTION; null: such tasks are refused"
    )
    judge_llm_base_url: str | None = Field(
        description="URL of the judge's OpenAI-compatible server, with /v1; null: litellm finds it by the name"
    )
    judge_llm_api_key: str | None = Field(repr=False, description="API key of that server; never written or logged")
    judge_llm_args: dict[str, Any] | None = Field(
        description="sampling arguments of the judge; null: {temperature: 0.0}, as in tau2"
    )
    reward_basis: list[Literal["DB", "ENV_ASSERTION", "NL_ASSERTION", "ACTION", "COMMUNICATE"]] | None = Field(
        min_length=1,
        description="the parts that are multiplied to give the reward; null: each task's own",
    )
    retrieval_config: str | None = Field(
        description="banking_knowledge: no_knowledge, full_kb, golden_retrieval, bm25, bm25_grep or grep_only"
    )
    retrieval_config_kwargs: dict[str, Any] | None = Field(
        description="options of retrieval_config: top_k, grep_top_k, case_sensitive; null: tau2's defaults"
    )
    turn_discount: float = Field(ge=0, le=1, description="discount of the reward for each later turn; 1: no discount")
    invalid_format_penalty: float = Field(ge=0, description="subtracted from a turn's return for a malformed tool call")
    transfer_penalty: float = Field(
        ge=0, description="subtracted from the training reward when the agent transfers a task that does not ask for it"
    )


class DomainConfig(Section):
    """One domain of a run with several (``domain=[telecom,retail]``).

    The sections hold what a run of this domain alone would have, changed by the keys that are given here. Keys that
    belong to the whole run cannot be given here (``config.domains`` names them).
    """

    weight: float = Field(gt=0, description="share of the training tasks, relative to the others")
    econfig: EnvironmentConfig
    train_dataset: TrainDatasetConfig
    valid_dataset: ValidDatasetConfig
