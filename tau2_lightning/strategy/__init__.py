"""ArchonStrategy: data, pipeline, tensor, context and expert parallel training inside Lightning."""

from tau2_lightning.strategy.archon import ArchonStrategy
from tau2_lightning.strategy.outputs import ForwardOutput, LossFn, MicroBatch, TokenOutputs

__all__ = ["ArchonStrategy", "ForwardOutput", "LossFn", "MicroBatch", "TokenOutputs"]
