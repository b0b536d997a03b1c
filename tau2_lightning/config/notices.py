"""What a user should know about a configuration that is accepted: shown at the start and in a plan, and kept in the run
folder's configuration and report."""

from __future__ import annotations

from .allocation import Allocation
from .megatron_words import idle_keys
from .schema import RunConfig


def notices(config: RunConfig) -> list[str]:
    """One line each. Raises AllocationError when ``allocation_mode`` cannot be read."""
    found = list(Allocation.parse(config.allocation_mode).notices)
    idle = idle_keys(config.actor.megatron)
    if idle:
        found.append(f"actor.megatron: {', '.join(idle)} have no effect; they say how megatron-core computes, not what")
    return found
