"""The line of ``mode=plan`` about the trainer's memory."""

from __future__ import annotations

from tau2_lightning.config.allocation import Allocation, AllocationError
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError

_GIB = 2.0**30


def memory_lines(config: RunConfig) -> list[str]:
    """The memory of a rank of the heaviest pipeline stage, and of the lightest.

    Empty for the tiny policy, and for a model or a layout that other lines of the plan refuse.
    """
    from tau2_lightning.policy.loading import load_model_config
    from tau2_lightning.policy.model_config import unbuildable
    from tau2_lightning.strategy.families.registry import family_of
    from tau2_lightning.strategy.lora import LoRASettings
    from tau2_lightning.strategy.memory import Demand, memory_of_stages

    actor = config.actor
    if actor.path is None:
        return []
    try:
        spec = Allocation.parse(config.allocation_mode).training_spec()
        model = load_model_config(actor.path)
        if family_of(model) is None or unbuildable(model) or spec.d * spec.c % actor.fsdp.replicate:
            return []
        demand = Demand(
            actor.precision, actor.activation_checkpointing, actor.max_tokens_per_mb, actor.schedule,
            actor.fsdp.replicate, LoRASettings.of(actor.lora),
        )  # fmt: skip
        stages = sorted(memory_of_stages(model, spec, demand), key=lambda one: one.total)
    except (AllocationError, ConfigError, OSError, ValueError):
        return []
    heaviest, lightest = stages[-1], stages[0]
    where = f" of the ranks of pipeline stage {heaviest.stage}, the heaviest" if spec.p > 1 else ""
    line = (
        f"trainer's memory of a GPU{where}: about {heaviest.total / _GIB:.1f} GiB = "
        f"{heaviest.state / _GIB:.1f} weights, gradients and Adam in float32 "
        f"+ {heaviest.gathered / _GIB:.1f} gathered in {actor.precision} + about {heaviest.activations / _GIB:.1f} "
        f"activations of micro-batches of {actor.max_tokens_per_mb} tokens"
    )
    if spec.p > 1:
        line += f"; of stage {lightest.stage}, the lightest: {lightest.total / _GIB:.1f} GiB"
    return [line]
