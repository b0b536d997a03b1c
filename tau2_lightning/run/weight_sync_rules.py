"""Rules for the keys of ``rollout.weight_sync``."""

from __future__ import annotations

from collections.abc import Iterator

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation

DELTA_BACKENDS = ("auto", "http")


def check_weight_sync(config: RunConfig) -> Iterator[Violation]:
    """The violations of ``mode=delta``: other backends, and settings with which it would send as much as ``full``."""
    sync, actor = config.rollout.weight_sync, config.actor
    if sync.mode == "full":
        return
    key, full = "rollout.weight_sync.mode", "or rollout.weight_sync.mode=full"
    if sync.backend not in DELTA_BACKENDS:
        problem = f"needs HTTP, but rollout.weight_sync.backend is {sync.backend}"
        yield Violation(key, sync.mode, problem, f"Set rollout.weight_sync.backend=auto or http, {full}")
    if actor.dtype == "float32":
        problem = "saves nothing for engines in float32: an optimizer step changes nearly every value"
        yield Violation(key, sync.mode, problem, f"Set actor.dtype=bfloat16, {full}")
    if actor.lora.r and actor.lora.sync == "adapter":
        problem = "has no effect with actor.lora.sync=adapter: an adapter is always sent whole"
        yield Violation(key, sync.mode, problem, f"Set actor.lora.sync=merged, {full}")
