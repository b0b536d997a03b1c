"""Whether, and how deeply, engines sleep while the trainer computes."""

from __future__ import annotations

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.launch.cluster import placement_of

from .names import SGLANG


def can_sleep(config: RunConfig) -> str | None:
    """Why engines cannot sleep while the trainer computes; None where they can."""
    placement, r = placement_of(config), config.rollout
    if r.engine_urls:
        return "engines of rollout.engine_urls are not the run's own"
    if placement.on_cpu:
        return "engines on a CPU have nothing to give back"
    if placement.allocation.engine == SGLANG:
        return "engines of SGLang stay awake here"
    engine, trainer = placement.allocation.generation, placement.allocation.training
    if not any(engine in group and trainer in group for group in placement.allocation.groups):
        return "no engine shares GPUs with the trainer (`|` in allocation_mode)"
    if r.max_head_offpolicyness:
        return f"rollout.max_head_offpolicyness={r.max_head_offpolicyness} collects while the trainer computes"
    return "rollout.mode=online serves programs outside the run at any time" if r.mode == "online" else None


def sleep_level(config: RunConfig) -> int:
    """The level at which engines sleep while the trainer computes: ``rollout.sleep_level``, or what fits the run."""
    given = config.rollout.sleep_level
    if can_sleep(config) is not None:
        return 0
    return (1 if keeps_base(config) else 2) if given is None else given


def keeps_base(config: RunConfig) -> bool:
    """Whether publications bring less than all weights, so that an engine must keep those that it has."""
    lora = config.actor.lora
    return (lora.r > 0 and lora.sync == "adapter") or config.rollout.weight_sync.mode == "delta"
