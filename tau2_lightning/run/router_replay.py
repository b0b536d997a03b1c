"""Router replay settled for a model: whether the engine returns experts and the trainer uses them, and why."""

from __future__ import annotations

from pathlib import Path

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.rollout.engine.names import SGLANG
from tau2_lightning.strategy.preflight import replays_experts

KEY = "rollout.return_routed_experts"
# The engine keeps experts beside its prefix cache, so that a cached prompt has them, too.
_CONFLICT = "--no-enable-prefix-caching"


def with_router_replay(config: RunConfig, policy: Path) -> RunConfig:
    """``config`` with ``rollout.return_routed_experts`` settled for the model at ``policy``.

    Without training no experts are recorded. Raises ConfigError when they are asked for, and the trainer or the engine
    cannot use them.
    """
    asked = config.rollout.return_routed_experts
    possible = asked is not False and replays_experts(policy) and not _by_sglang(config)
    if asked and not possible:
        problem = f"the model at {policy} has no experts whose choice the trainer can replay, or the engine is SGLang"
        remedy = "Use null, which asks for experts where they can be replayed"
        raise ConfigError([Violation(KEY, asked, problem, remedy)])
    if possible and _CONFLICT in config.rollout.engine_args:
        possible = False
        if asked:
            problem = f"the engine keeps experts in its prefix cache, which {_CONFLICT} turns off"
            raise ConfigError([Violation(KEY, asked, problem, f"Use false, or leave {_CONFLICT} out")])
    settled = config.rollout.model_copy(update={"return_routed_experts": possible and config.mode == "train"})
    return config.model_copy(update={"rollout": settled})


def replay_lines(config: RunConfig, policy: Path) -> list[str]:
    """What the start and the plan say about router replay; nothing for a model without experts to replay, and without
    training."""
    if config.mode != "train" or not replays_experts(policy):
        return []
    if with_router_replay(config, policy).rollout.return_routed_experts:
        return [
            f"router replay: on, the trainer's routers choose the experts that the engine chose ({KEY}=false turns it "
            "off); where the engine returns none, they choose themselves, which a warning says once"
        ]
    if config.rollout.return_routed_experts is False:
        reason = f"{KEY}=false"
    elif _by_sglang(config):
        reason = "it is tested with vLLM only"
    else:
        reason = f"{_CONFLICT} turns off the cache in which the engine keeps experts"
    return [f"router replay: off ({reason}); the trainer's routers choose experts themselves"]


def _by_sglang(config: RunConfig) -> bool:
    return Allocation.parse(config.allocation_mode).engine == SGLANG
