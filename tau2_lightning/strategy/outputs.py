"""The results of a strategy: log-probs for a loss, and the loss of an optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from tau2_lightning.microbatch import MicroBatch


@dataclass(frozen=True)
class TokenOutputs:
    """Per-label results of one micro-batch, [B, T] float32, 0 where ``loss_mask`` is False.

    ``logprobs`` (nats) of the label and ``entropy`` (nats) of the distribution, both after temperature and both
    differentiable.
    """

    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class ForwardOutput:
    """Loss and metrics of one optimizer step, summed over micro-batches and over every rank that holds data.

    ``loss`` is a detached float32 scalar; ``metrics`` are detached float32 scalars. Equal on every rank.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


LossFn = Callable[[TokenOutputs, MicroBatch], tuple[Tensor, dict[str, Tensor]]]
