"""The section ``rollout``: episodes, proxy, engines and weight synchronisation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .section import Section


class WeightSyncConfig(Section):
    """How new weights reach the engine, and how closely engine and trainer must agree afterwards."""

    backend: Literal["auto", "shm", "ipc", "nccl"] = Field(description="transport of the weights")
    timeout: float = Field(gt=0, description="seconds of one synchronisation")
    parity_tolerance: float | None = Field(
        gt=0, description="max |difference| of log-probs; null: float32 1e-3 (0.1 on a GPU), else 0.25"
    )
    parity_rows: int = Field(ge=1, description="rows that are compared after each synchronisation")


class RolloutConfig(Section):
    """Episodes, proxy and engine. All times are seconds."""

    max_concurrent_rollouts: int = Field(ge=1, description="episodes in flight")
    max_head_offpolicyness: int = Field(
        ge=0,
        description="0: strictly on-policy; n: collect during training, by weights at most n versions old",
    )
    stragglers: Literal["wait", "drop"] = Field(
        description="with max_head_offpolicyness > 0: wait for slow groups in time, or drop those that became too old"
    )
    filter_groups: bool = Field(description="drop, count and refill groups whose rewards are all equal")
    max_refill_groups: int = Field(ge=0, description="at most so many extra groups a step in place of dropped ones")
    retries: int = Field(ge=0, description="of an episode after an infrastructure fault, before it is excluded")
    episode_timeout: float = Field(gt=0, description="time of one episode")
    request_timeout: float = Field(gt=0, description="time of one completion")
    collect_timeout: float = Field(gt=0, description="time of one batch of rollouts, or of one validation")
    official_check: float = Field(
        ge=0, le=1, description="share of episodes re-scored by tau2's own evaluator; a mismatch stops the run"
    )
    seeded_sampling: bool | None = Field(
        description="a seed for every turn, so that a run can be repeated to the bit; null: on CPU engines"
    )
    host: str = Field(description="address of the proxy")
    port: int = Field(ge=0, le=65535, description="of the proxy; 0: any free one")
    tool_call_parser: str = Field(description="parser of the policy's tool calls")
    enforce_tool_choice: bool = Field(
        description="constrain recorded turns by a grammar too; such turns are never trained on"
    )
    history_policy: Literal["keep", "branch"] = Field(
        description="when a chat template rewrites turns that were sampled: keep their tokens, or branch the session"
    )
    mode: Literal["collect", "online"] = Field(
        description="online: outside programs open sessions, talk and set rewards"
    )
    session_timeout: float = Field(gt=0, description="time after which an idle session is given up")
    group_timeout: float = Field(
        gt=0, description="online: time a group may wait for its last sessions, or to be trained on"
    )
    rate_limit: float = Field(ge=0, description="requests a second that one key may make; 0: no limit")
    workflow: dict[str, Any] | None = Field(
        description="{_target_: package.Class, ...} of an agent workflow; null: the built-in tau2 episode"
    )
    engine_urls: list[str] = Field(description="running vLLM servers; empty: the run launches them")
    engine_api_key: str | None = Field(
        repr=False, description="of the engines in engine_urls, never written or logged; launched ones get a fresh one"
    )
    engine_port: int = Field(ge=0, le=65535, description="of the first launched engine; 0: any free one")
    engine_start_timeout: float = Field(gt=0, description="time for an engine to become ready")
    max_num_seqs: int = Field(ge=1, description="sequences that an engine computes at once")
    kv_cache_gib: float = Field(gt=0, description="GiB of key-value cache of a CPU engine")
    gpu_memory_utilization: float = Field(gt=0, le=1, description="share of a GPU's memory that an engine takes")
    engine_args: list[str] = Field(description="further arguments for the vLLM server")
    weight_sync: WeightSyncConfig
