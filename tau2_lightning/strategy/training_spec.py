"""The trainer's layout, from an allocation or from its letters alone."""

from __future__ import annotations

from tau2_lightning.config.allocation import Allocation, AllocationError, ParallelSpec
from tau2_lightning.errors import ConfigError, Violation


def training_spec(text: str) -> ParallelSpec:
    """``vllm:d1+archon:d2p2`` or ``d2p2`` -> the letters. Raises ConfigError for anything else."""
    try:
        return Allocation.parse(text).training_spec() if ":" in text else ParallelSpec.parse(text)
    except AllocationError as error:
        raise ConfigError([Violation("allocation_mode", text, error.problem, error.allowed)]) from error
