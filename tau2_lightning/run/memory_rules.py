"""Rules for the keys that save memory: where they would save nothing, and which of them exclude each other."""

from __future__ import annotations

from collections.abc import Iterator

from tau2_lightning.config.allocation import AllocationError
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.rollout.engine.sleep_level import can_sleep, keeps_base


def check_memory_keys(config: RunConfig) -> Iterator[Violation]:
    """The violations of the keys that offload, put to sleep, or store frozen weights in fewer bytes."""
    try:
        on_cpu = placement_of(config).on_cpu
    except AllocationError:
        return  # `check_launch` reports it
    yield from _base(config)
    yield from _sleep(config)
    actor = config.actor
    offloads = {
        "actor.optimizer.offload": actor.optimizer.offload,
        "actor.fsdp.offload_params": actor.fsdp.offload_params,
        "actor.activation_offloading": actor.activation_offloading,
    }
    for key, given in offloads.items():
        if given and on_cpu:
            yield Violation(key, True, "there is no GPU whose memory it would save", "Set it to false")
    if actor.fsdp.offload_params and actor.precision == "fp32":
        problem = "needs parameters that are cast for the computation"
        yield Violation("actor.fsdp.offload_params", True, problem, "Set actor.precision=bf16")


def _base(config: RunConfig) -> Iterator[Violation]:
    lora, key = config.actor.lora, "actor.lora.base_dtype"
    if lora.base_dtype == "float32":
        return
    if not lora.r:
        yield Violation(key, lora.base_dtype, "no weights are frozen without adapters", "Set actor.lora.r, or float32")
    if config.actor.precision == "fp32":
        problem = "frozen weights in bfloat16 cannot be computed with in float32"
        yield Violation(key, lora.base_dtype, problem, "Set actor.precision=bf16, or actor.lora.base_dtype=float32")


def _sleep(config: RunConfig) -> Iterator[Violation]:
    level, key = config.rollout.sleep_level, "rollout.sleep_level"
    if not level:
        return
    if (reason := can_sleep(config)) is not None:
        yield Violation(key, level, reason, "Set it to null or 0")
    elif level == 2 and keeps_base(config):
        problem = "drops weights that publications of an adapter, or of changes, do not bring again"
        yield Violation(key, level, problem, "Use 1 or null")
