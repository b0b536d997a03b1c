"""The number of layers of each pipeline stage."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from .families.family import Family

# Share of a dialogue's tokens that are trained, which `head_load` assumes: .1 to .4 in tau2's domains.
TRAINED = 0.3


def head_load(config: Any, family: Family) -> float:
    """The head's matrix products for a token over those of one decoder layer: its share of a stage, in layers.

    The head sees trained positions only, assumed to be ``TRAINED`` of all.
    """
    vocabulary: int = config.vocab_size
    return TRAINED * vocabulary / family.layer_products(config)


def layers_of_stages(num_layers: int, num_stages: int, head: float = 0.0) -> list[list[int]]:
    """Contiguous layers of every stage, such that the slowest stage is as light as possible.

    The last also has the head, worth ``head`` layers. With fewer layers than stages the last ones stay empty.
    """
    sizes = [int(stage < num_layers) for stage in range(num_stages)]
    extra = [0.0] * (num_stages - 1) + [head]
    for _ in range(num_layers - sum(sizes)):
        sizes[min(range(num_stages), key=lambda stage: sizes[stage] + extra[stage])] += 1
    ends = list(accumulate(sizes))
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
