"""The strategy as a configuration describes it: of policy training, and of fine-tuning a given model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.launch.cluster import visible_gpus

from .archon import ArchonStrategy
from .lora import LoRASettings

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig


def configured_strategy(config: RunConfig, **options: Any) -> ArchonStrategy:
    """The layout of ``allocation_mode`` with what ``actor`` says about computing and memory. ``options`` are further
    ones of `ArchonStrategy`, or replace these."""
    actor = config.actor
    given: dict[str, Any] = {
        "schedule": actor.schedule,
        "precision": actor.precision,
        "activation_checkpointing": actor.activation_checkpointing,
        "compile_blocks": actor.compile,
        "lora": LoRASettings.of(actor.lora),
        "base_dtype": actor.lora.base_dtype,
        "offload_params": actor.fsdp.offload_params,
        "activation_offloading": actor.activation_offloading,
        "replicate": actor.fsdp.replicate,
        "async_save": config.trainer.async_save,
        "packing": actor.packing,
        "tree_training": actor.enable_tree_training,
        "handwritten_elementwise": actor.handwritten_elementwise,
        "longest": config.gconfig.max_tokens,
        # Gloo beside NCCL where parameters are on the CPU and computed with on GPUs: both are gathered.
        "process_group_backend": ("cpu:gloo,cuda:nccl" if actor.fsdp.offload_params and visible_gpus(config) else None),
    }
    return ArchonStrategy(Allocation.parse(config.allocation_mode).training_spec(), **(given | options))
