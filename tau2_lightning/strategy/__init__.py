"""ArchonStrategy: data, pipeline, tensor, context and expert parallel training inside Lightning."""

from tau2_lightning.microbatch import MicroBatch

from .archon import ArchonStrategy
from .outputs import ForwardOutput, LossFn, TokenOutputs

__all__ = ["ArchonStrategy", "ForwardOutput", "LossFn", "MicroBatch", "TokenOutputs"]
