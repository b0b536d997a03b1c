"""The section ``rollout``: episodes, proxy, engines and weight synchronisation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .section import Section


class WeightSyncConfig(Section):
    """How new weights reach the engine, and how closely engine and trainer must agree afterwards."""

    backend: Literal["auto", "shm", "ipc", "nccl", "http", "gloo"] = Field(
        description="transport of the weights; auto: chosen for the devices; http: for engines on other machines; "
        "gloo: SGLang on CPUs"
    )
    mode: Literal["full", "delta"] = Field(
        description="full: send all values; delta: only those whose bits changed, over http (adapters: always whole)"
    )
    timeout: float = Field(
        gt=0, description="largest number of seconds for one synchronisation; comparisons of many tokens get more"
    )
    parity_tolerance: float | None = Field(
        gt=0,
        description="accepted mean |difference| of log-probs (p99 10x, largest 100x); "
        "null: float32 1e-4 (GPU 0.01), else 0.1",
    )
    parity_rows: int = Field(ge=1, description="rows that are compared after each synchronisation")


class RolloutConfig(Section):
    """Episodes, proxy and engine. All times are seconds."""

    max_concurrent_rollouts: int | None = Field(
        ge=1,
        description="largest number of episodes that run at the same time; "
        "null: engines x max_num_seqs, at most 64 per core",
    )
    max_head_offpolicyness: int = Field(
        ge=0,
        description="0: strictly on-policy; n: collect during training, with weights at most n versions old",
    )
    stragglers: Literal["wait", "drop"] = Field(
        description="with max_head_offpolicyness > 0: wait for slow groups, or drop groups that became too old"
    )
    filter_groups: bool = Field(
        description="drop and count groups whose rewards are all equal, and play other groups instead"
    )
    max_refill_groups: int = Field(ge=0, description="largest number of groups per step that replace dropped ones")
    retries: int = Field(
        ge=0, description="retries of an episode after an infrastructure fault; after the last one it is excluded"
    )
    max_fault_fraction: float = Field(
        ge=0,
        le=1,
        description="largest share of excluded episodes in a batch or validation; above it the run stops; 1: never",
    )
    request_timeout: float | None = Field(
        gt=0,
        description="time limit of one completion, which then ends as at max_new_tokens; null: follows from that",
    )
    episode_timeout: float | None = Field(
        gt=0, description="time limit of one episode; null: follows from its steps, its tokens and tokens_per_second"
    )
    collect_timeout: float | None = Field(
        gt=0,
        description="time limit of one batch of rollouts, or of one validation; null: follows from episode_timeout",
    )
    tokens_per_second: float | None = Field(
        gt=0,
        description="slowest rate of one sequence in an engine; limits that are null use it; null: 2 on CPU, 10 on GPU",
    )
    official_check: float = Field(
        ge=0, le=1, description="share of episodes that tau2's own evaluator scores again; a mismatch stops the run"
    )
    seeded_sampling: bool | None = Field(
        description="sample every turn with a seed, so that a run can be repeated bit for bit; null: on CPU engines"
    )
    host: str = Field(description="network address on which the proxy listens")
    port: int = Field(ge=0, le=65535, description="port of the proxy; 0: any free port")
    plain_http_beyond_loopback: bool = Field(
        description="let rollout.host be of a network, unencrypted; set it only where a network or tunnel protects it"
    )
    tool_call_parser: str = Field(
        description="parser of the policy's tool calls; auto: the one that reads the calls of the chat template"
    )
    reasoning_parser: str | None = Field(
        description="marks of thoughts to split off: auto (those of its template), think, qwen3, ...; null: none"
    )
    enforce_tool_choice: bool = Field(
        description="enforce tool_choice by a grammar in recorded sessions too; such turns are never trained on"
    )
    history_policy: Literal["keep", "branch"] = Field(
        description="when a chat template rewrites turns that were sampled: keep their tokens, or branch the session"
    )
    mode: Literal["collect", "online"] = Field(
        description="who plays training episodes; collect: the run; online: programs outside the run, through the proxy"
    )
    keep_rollouts: str = Field(
        description="how much of all episodes stays in the run folder, newest first: all, none, 500steps, 20GiB, 800MiB"
    )
    session_timeout: float = Field(gt=0, description="time after which an idle session is aborted")
    group_timeout: float = Field(
        gt=0, description="mode=online: time that a group may wait for its last sessions, or for training"
    )
    rate_limit: float = Field(ge=0, description="largest number of requests per second with one key; 0: no limit")
    workflow: dict[str, Any] | None = Field(
        description="agent workflow of your own, {_target_: package.Class, ...}; null: the built-in tau2 episode"
    )
    return_routed_experts: bool | None = Field(
        description="router replay: train with the experts that the engine chose; null: if model and trainer support it"
    )
    engine_urls: list[str] = Field(
        description="URLs of running servers, of the engine in allocation_mode; empty: the run launches servers"
    )
    engine_python: str | None = Field(
        description="interpreter of the environment in which SGLang is installed, for allocation_mode=sglang:...; "
        "null: none"
    )
    engine_api_key: str | None = Field(
        repr=False,
        description="API key of the engines in engine_urls; never written or logged; launched engines get a new key",
    )
    engine_port: int = Field(ge=0, le=65535, description="port of the first launched engine; 0: any free port")
    engine_start_timeout: float = Field(gt=0, description="time limit for the start of an engine")
    max_restarts: int = Field(
        ge=0, description="restarts of one launched engine within restart_window; one more saves and ends the run"
    )
    restart_window: float = Field(gt=0, description="seconds over which restarts are counted")
    max_num_seqs: int = Field(ge=1, description="largest number of sequences that an engine computes simultaneously")
    kv_cache_gib: float = Field(gt=0, description="size of a CPU engine's key-value cache, in GiB")
    gpu_memory_utilization: float = Field(gt=0, le=1, description="share of a GPU's memory that an engine takes")
    sleep_level: Literal[0, 1, 2] | None = Field(
        description="what engines on the trainer's GPUs free while it computes; 0: nothing; null: as the run allows"
    )
    engine_args: list[str] = Field(
        description='further arguments for the server of the engine, e.g. ["--max-num-batched-tokens=4096"]'
    )
    weight_sync: WeightSyncConfig
