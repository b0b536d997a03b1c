"""ArchonStrategy: data, pipeline, tensor, context and expert parallel training inside Lightning."""

from .archon import ArchonStrategy
from .outputs import ForwardOutput, LossFn, MicroBatch, TokenOutputs

__all__ = ["ArchonStrategy", "ForwardOutput", "LossFn", "MicroBatch", "TokenOutputs"]
