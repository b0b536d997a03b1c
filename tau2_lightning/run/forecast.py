"""Warnings of ``mode=plan`` and every start: settings with which a run starts, and later fails or becomes very slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.policy.loading import describes_only, load_model_config, load_tokenizer
from tau2_lightning.rollout.chat.reasoning import marks_for
from tau2_lightning.rollout.chat.template import ChatFormatError
from tau2_lightning.rollout.deadlines import FIRST_TOKEN_SECONDS, Limits

from .openings import longest_opening
from .plan_disk import disk_warnings

#: Measured for a thinking model in telecom: turns of an episode, and tokens of the thoughts of one turn.
TURNS, THOUGHT = 13, 300
FEW_TURNS = 4
#: Average length of an episode in the cache, as a share of the longest length.
KV_SHARE = 0.25


def warnings_of(config: RunConfig, policy: Path | None = None) -> list[str]:
    """The warnings for this run, one line each. ``policy`` is the folder of the policy if it is not ``actor.path``.

    Warnings that need a policy which is not on this machine are left out.
    """
    limits = Limits.of(config)
    found = [*_limits(config, limits)]
    path = policy or (Path(config.actor.path) if config.actor.path else None)
    if path is None or not path.is_dir():
        return found
    found += disk_warnings(config, path)
    if describes_only(path) or config.rollout.workflow is not None:
        return found  # the opening prompt is not known
    try:
        opening = longest_opening(config, path)
    except (ChatFormatError, ConfigError):  # a template that refuses the dialogue is refused elsewhere
        return found
    found += [*_length(config, opening), *_branches(config, path, opening)]
    return [*found, *_cache(config, path, limits, opening)]


def _limits(config: RunConfig, limits: Limits) -> Iterator[str]:
    g = config.gconfig
    needed = g.max_new_tokens / limits.rate
    if limits.request < needed:
        kept = limits.request * limits.rate
        yield (
            f"rollout.request_timeout={limits.request:g} ends a turn after about {kept:.0f} tokens at "
            f"{limits.rate:g} tokens/s; gconfig.max_new_tokens={g.max_new_tokens} takes {needed:.0f} s, and up to "
            f"{FIRST_TOKEN_SECONDS:.0f} s more for the prompt"
        )
    if limits.collect is not None and limits.collect < (limits.retries + 1) * limits.episode:
        yield (
            f"rollout.collect_timeout={limits.collect:g} is shorter than one episode with its retries "
            f"({limits.retries + 1} x {limits.episode:g} s): one episode that hangs stops the run"
        )


def _length(config: RunConfig, opening: int) -> Iterator[str]:
    g = config.gconfig
    turns = (g.max_tokens - opening) / g.max_new_tokens
    if turns < FEW_TURNS:
        yield (
            f"gconfig.max_tokens={g.max_tokens} holds the opening of {opening} tokens and {turns:.1f} turns of "
            f"{g.max_new_tokens}: longer episodes end with context_length_exceeded"
        )


def _branches(config: RunConfig, path: Path, opening: int) -> Iterator[str]:
    thinks = config.gconfig.enable_thinking is not False and config.rollout.reasoning_parser is not None
    solo = any(view.econfig.solo_mode for view in config.by_domain.values())
    if config.rollout.history_policy != "branch" or not thinks or not solo:
        return
    tokenizer = load_tokenizer(path, config.actor.chat_template)
    marks = marks_for(config.rollout.reasoning_parser, str(tokenizer.chat_template), tokenizer)
    if marks is None or (marks.sign or marks.closing) not in str(tokenizer.chat_template):
        return
    line = opening + TURNS * THOUGHT
    rows = sum(opening + turn * THOUGHT for turn in range(1, TURNS + 1))
    yield (
        f"history_policy=branch in solo mode with a template that drops thoughts makes one row per turn: an episode of "
        f"{TURNS} turns has {TURNS} rows with {rows:,} tokens in total, instead of one row of {line:,}. "
        "rollout.history_policy=keep, or gconfig.enable_thinking=false, avoids it"
    )


def _cache(config: RunConfig, path: Path, limits: Limits, opening: int) -> Iterator[str]:
    size = kv_bytes_per_token(load_model_config(path), config.actor.dtype)
    capacity = _kv_capacity(config, path)
    if capacity is None or size is None:
        return
    at_once = min(-(-limits.concurrent // limits.engines), config.rollout.max_num_seqs)
    # Episodes share the tokens of their openings.
    needed = (opening + at_once * KV_SHARE * (config.gconfig.max_tokens - opening)) * size
    if needed > capacity:
        fits = max(0, int((capacity / size - opening) / (KV_SHARE * (config.gconfig.max_tokens - opening))))
        yield (
            f"{at_once} episodes in an engine need {needed / 2**30:.1f} GiB of key-value cache at a quarter of "
            f"gconfig.max_tokens={config.gconfig.max_tokens}, but there are {capacity / 2**30:.1f} GiB: about {fits} "
            "run at the same time, the others wait or are preempted. Lower rollout.max_num_seqs, or enlarge the cache"
        )


def kv_bytes_per_token(model: Any, dtype: str) -> int | None:
    """Bytes of the key-value cache for one token: 2 x layers x kv heads x head size x bytes of a number.

    None for a configuration that does not have these fields.
    """
    heads = getattr(model, "num_attention_heads", None)
    layers, kv_heads = getattr(model, "num_hidden_layers", None), getattr(model, "num_key_value_heads", None) or heads
    if not heads or not layers or not kv_heads:
        return None
    head = getattr(model, "head_dim", None) or model.hidden_size // heads
    return int(2 * layers * kv_heads * head * (4 if dtype == "float32" else 2))


def _kv_capacity(config: RunConfig, path: Path) -> float | None:
    """Bytes of the key-value cache of one engine; None if they are not known.

    On a GPU this is the engine's share of the memory (of this machine's GPU) minus the weights.
    """
    placement = placement_of(config)
    if config.rollout.engine_urls:
        return None
    if placement.on_cpu:
        return config.rollout.kv_cache_gib * 2**30
    if not torch.cuda.is_available() or placement.allocation.generation is None:
        return None
    memory = torch.cuda.get_device_properties(0).total_memory * config.rollout.gpu_memory_utilization
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return max(0.0, placement.allocation.generation.spec.t * memory - weights)
