"""From sums to the numbers on a dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

#: Shares of the step's mean, already divided by global counts: they add up to the value itself.
SHARES = frozenset({"loss", "policy_loss", "kl_loss"})
COUNTS = frozenset({"tokens", "rows"})


Value = TypeVar("Value", float, Tensor)


def merge(a: Mapping[str, Value], b: Mapping[str, Value]) -> dict[str, Value]:
    """Reduce two metric dicts (of numbers or scalar tensors): ``max_*`` by maximum, everything else by addition."""
    merged = dict(a)
    for name, value in b.items():
        if name not in merged:
            merged[name] = value
        else:
            merged[name] = max(merged[name], value) if name.startswith("max_") else merged[name] + value
    return merged


def finalise(sums: Mapping[str, float]) -> dict[str, float]:
    """Means from reduced sums: shares, counts and maxima as they are, the rest per trained token.

    ``*_lagK`` are per trained token of lag K, and left out where there is none; ``tokens_lagK`` becomes a fraction.
    """
    tokens = max(float(sums.get("tokens", 0.0)), 1.0)
    out: dict[str, float] = {}
    for name, value in sums.items():
        stem, _, lag = name.rpartition("_lag")
        if name in SHARES or name in COUNTS or name.startswith("max_"):
            out[name] = float(value)
        elif stem == "tokens":
            out[f"fraction_lag{lag}"] = float(value) / tokens
        elif stem and lag.isdigit():
            count = float(sums[f"tokens_lag{lag}"])
            if count > 0:
                out[name] = float(value) / count
        else:
            out[name] = float(value) / tokens
    return out
