"""What tells runs apart besides the seed: runs of one variant are repetitions of one experiment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tau2_lightning.config.flat import flattened
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets

# Where files go, who starts the run and what it shows: no matter of the training.
IDLE = (
    "mode", "plan", "experiment_name", "trial_name", "output_dir", "cache_dir", "ckpt_path", "cluster", "scheduler",
    "callbacks", "logger", "warm_start", "trainer.progress", "trainer.profiler",
)  # fmt: skip
SEED = "seed"


def settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a variant consists of, by dotted key. ``stored`` is a configuration without secrets."""
    return {
        name: value
        for name, value in flattened(stored).items()
        if not any(name == idle or name.startswith(f"{idle}.") for idle in (*IDLE, SEED))
    }


def variant(config: RunConfig) -> str:
    """``<experiment>-<digest of the settings>``: equal for runs that differ in nothing but their seed."""
    content = json.dumps(settings(without_secrets(config)), sort_keys=True, default=str)
    return f"{config.experiment_name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
