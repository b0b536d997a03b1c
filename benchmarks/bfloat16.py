"""Compares matrix products in bfloat16 with those in float32 on this processor: why data types can be ``auto``.

The products are those of SmolLM2-135M's MLP for 1,024 tokens: forward, and the gradients of input and weight. A ratio
is processor time in bfloat16 over that in float32, the median of several turns; above 1, bfloat16 is slower.

    python benchmarks/bfloat16.py

The last line is JSON: ``ratios``, and whether torch says that the processor multiplies bfloat16.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from tau2_lightning.run.native_types import cpu_multiplies_bfloat16

TOKENS, HIDDEN, MLP, ROUNDS = 1024, 576, 1536, 5


def products(dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """The products by name."""
    inputs, weight = torch.randn(TOKENS, HIDDEN, dtype=dtype), torch.randn(MLP, HIDDEN, dtype=dtype)
    outputs = torch.randn(TOKENS, MLP, dtype=dtype)
    return {
        "forward": lambda: inputs @ weight.T,
        "gradient of the input": lambda: outputs @ weight,
        "gradient of the weight": lambda: outputs.T @ inputs,
    }


def seconds(product: Callable[[], Tensor]) -> float:
    """Processor seconds of one product."""
    began = time.process_time()
    product()
    return time.process_time() - began


def main() -> None:
    """Measure and print."""
    wide, narrow = products(torch.float32), products(torch.bfloat16)
    turns: dict[str, list[float]] = {name: [] for name in wide}
    for turn in range(ROUNDS + 1):
        for name in wide:
            ratio = seconds(narrow[name]) / seconds(wide[name])
            if turn:  # the first is for warming up
                turns[name].append(ratio)
    ratios = {name: round(median(found), 2) for name, found in turns.items()}
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio}")
    print(json.dumps({"ratios": ratios, "aims": {}, "in hardware": cpu_multiplies_bfloat16()}))


if __name__ == "__main__":
    main()
