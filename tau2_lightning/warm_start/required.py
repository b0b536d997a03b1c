"""The reward that demonstrations must earn to be imitated."""

from __future__ import annotations

from tau2_lightning.config.schema import RunConfig


def required_reward(config: RunConfig) -> float | None:
    """``warm_start.require_reward``, and where it is null: tau2's full reward.

    The exception is the embedded policy in solo telecom: its expert leaves fixes out on purpose, so that GRPO has
    something to learn. ``config`` is the configuration of one domain.
    """
    given = config.warm_start.require_reward
    forgetful = config.tiny and config.econfig.solo_mode and config.econfig.domain.startswith("telecom")
    return given if given is not None or forgetful else 1.0
